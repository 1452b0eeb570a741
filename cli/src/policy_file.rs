//! `NAME.policy.toml`: the appraisal policy that fits a package, written by the packager and read by whoever verifies.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrysalis_attestation::policy::{
    AppraisalPolicy, Dangerous, MaxAge, PlatformTrust, ServingDemand, SnpDemand,
};
use chrysalis_protocol::statement::PadProfile;
use chrysalis_runtime::boot::SIMULATED_MEASUREMENT;
use chrysalis_runtime::config::LaunchConfig;

use crate::error::CliError;

/// Where the policy of a package lies.
pub fn path(package: &Path) -> PathBuf {
    package.with_extension("policy.toml")
}

/// The policy that accepts this package, served by an enclave with the default launch config, and nothing else.
///
/// This version asks no hardware for evidence, so that the policy has to allow the simulated platform.
pub fn fitting(
    content_digest: [u8; 48],
    publisher_key_id: [u8; 32],
    minimum_svn: u32,
    client_bundle: [u8; 32],
) -> AppraisalPolicy {
    let served = LaunchConfig::default().serving_policy();
    AppraisalPolicy {
        content_digests: vec![content_digest],
        publishers: vec![publisher_key_id],
        client_bundles: vec![client_bundle],
        minimum_svn,
        measurements: vec![SIMULATED_MEASUREMENT],
        allow_simulated: true,
        platform: PlatformTrust::AnyGenuine,
        max_age: MaxAge::Fresh,
        serving: ServingDemand {
            pad_profiles: vec![PadProfile::Tick, PadProfile::Flat],
            min_tick_ms: served.tick_ms,
            max_tick_ms: served.tick_ms,
            min_length_quantum: served.length_quantum,
            min_billing_quantum: served.billing_quantum,
            max_epoch_seconds: served.epoch_max_seconds,
            max_epoch_requests: served.epoch_max_requests,
            allow_text_mode: served.text_mode,
            allow_kv_sharing: served.kv_sharing,
            allow_spec_decode: served.spec_decode,
            allow_moe_on_cpu: served.moe_on_cpu,
            require_oblivious_embed: served.oblivious_embed,
            max_ack_window: (served.ack_window > 0).then_some(served.ack_window),
        },
        snp: SnpDemand::default(),
        gpu: None,
        tdx: None,
        dangerous: Dangerous { allow_debug_build: cfg!(debug_assertions), ..Dangerous::default() },
    }
}

/// Writes a policy: whole, or not at all.
///
/// # Errors
/// [`CliError::Io`] names the file.
pub fn write(path: &Path, policy: &AppraisalPolicy) -> Result<(), CliError> {
    let staged = path.with_extension("toml.partial");
    let text = format!("{}{}", warning(policy), policy.to_toml());
    let written = (|| -> io::Result<()> {
        let mut file = File::create(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    })();
    written.map_err(|error| {
        // It may not even be there.
        drop(fs::remove_file(&staged));
        CliError::io(path)(error)
    })
}

/// What a written policy gives away, as the first lines of its file; nothing for one that gives nothing away.
fn warning(policy: &AppraisalPolicy) -> String {
    let mut text = String::new();
    if policy.allow_simulated {
        text.push_str(
            "# WARNING: this policy accepts a simulated platform. It is for trying things out: whoever runs the\n\
             # enclave can read prompts, answers and weights. For use, set allow_simulated = false and put the\n\
             # measurement of a real enclave image below.\n",
        );
    }
    if policy.dangerous.allow_debug_build {
        text.push_str("# WARNING: this policy accepts a debug build of the enclave, because a debug build wrote it.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_policy_reads_back_and_warns() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("model.chry"));
        assert_eq!(path.file_name().unwrap(), "model.policy.toml");
        let policy = example();
        write(&path, &policy).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# WARNING"), "{text}");
        assert_eq!(AppraisalPolicy::from_toml(&text), Ok(policy));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_policy_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A folder stands where the file should.
        let path = folder.path().join("model.policy.toml");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write(&path, &example()), Err(CliError::Io { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    fn example() -> AppraisalPolicy {
        fitting([1; 48], [2; 32], 3, [4; 32])
    }
}
