//! What a broker's operator does while it does not serve: make a store, store licences, take them back, look.

use std::fs;
use std::path::Path;

use chrysalis_protocol::package::PublicHeader;
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::rng::SystemRng;
use serde::Serialize;

use super::args::{AddArgs, InitArgs, LicenceArgs, LogArgs, RevokeArgs, StatusArgs};
use super::error::BrokerError;
use super::licence::{self, Licensed, now_unix, timestamp};
use super::log::{self, Entry, LogError, Summary};
use super::master::MasterKey;
use super::record::LicenceRecord;
use super::store::{self, Package, Store};
use crate::error::CliError;
use crate::{hex, key_file, output, policy_file};

/// What `init`, `add` and `revoke` print with `--json`.
#[derive(Serialize)]
struct Done {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key_made: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_id: Option<String>,
    log_count: u64,
    log_head: String,
}

/// A package, as `status --json` prints it.
#[derive(Serialize)]
struct State {
    package_id: String,
    model: String,
    serial: u64,
    revoked: bool,
    expires: String,
    svn_floor: u32,
    releases_spent: u64,
    releases: Option<u64>,
    tokens_spent: u64,
    token_budget: Option<u64>,
}

/// What `log --verify --json` prints.
#[derive(Serialize)]
struct Verified {
    entries: u64,
    head: String,
    releases: u64,
    compared_with_store: bool,
}

/// Runs `chrysalis key-broker init`.
///
/// # Errors
/// [`BrokerError::StoreExists`].
pub fn init(args: &InitArgs) -> Result<(), CliError> {
    let (master, made) = MasterKey::read_or_create(&args.at.master_key)?;
    let store = Store::create(&args.at.store, &master, now_unix())?;
    let text = format!(
        "made a store in {}, under the {}master key {}",
        args.at.store.display(),
        if made { "new " } else { "" },
        args.at.master_key.display()
    );
    done(&store, args.json, Some(made), None, &text)
}

/// Runs `chrysalis key-broker licence`.
///
/// # Errors
/// [`CliError::Package`].
pub fn licence(args: &LicenceArgs) -> Result<(), CliError> {
    let public = header(&args.package)?;
    let stem = args.package.file_stem().unwrap_or_default().to_string_lossy();
    let model = args.model.as_deref().unwrap_or(&stem);
    let policy = policy_file::path(&args.package);
    let policy = policy.file_name().unwrap_or_default().to_string_lossy();
    output::piece(&licence::example(public.header(), model, &policy, now_unix()))
}

/// Runs `chrysalis key-broker add`.
///
/// # Errors
/// [`BrokerError`] says which check failed; the store is as it was then.
pub fn add(args: &AddArgs) -> Result<(), CliError> {
    let master = MasterKey::read(&args.at.master_key)?;
    let text = fs::read_to_string(&args.licence).map_err(CliError::io(&args.licence))?;
    let wrong = |source| BrokerError::Licence { path: args.licence.clone(), source };
    let read = licence::Licence::from_toml(&text).map_err(wrong)?;
    let policy_path =
        args.licence.parent().unwrap_or_else(|| Path::new(".")).join(&read.policy_path);
    let policy = fs::read_to_string(&policy_path).map_err(CliError::io(&policy_path))?;
    let licensed = Licensed::from_toml(&text, &policy).map_err(wrong)?;
    let public = header(&args.package)?;
    let header = public.header();
    let package_id = hex::encode(&header.package_id);
    let other = |what| BrokerError::OtherPackage { what, package_id: package_id.clone() };
    if licensed.licence.package_id != header.package_id {
        return Err(other("licence").into());
    }
    let key = key_file::read(&args.key)?;
    if !key.fits(header) {
        return Err(other("key").into());
    }
    let (found, floor) = (header.model_svn, licensed.licence.minimum_svn);
    if found < floor {
        return Err(BrokerError::PackageSvn { found, floor }.into());
    }
    let mut store = Store::open(&args.at.store)?;
    if !store.is_under(&master)? {
        return Err(BrokerError::MasterKey { path: args.at.master_key.clone() }.into());
    }
    let bound = LicenceRecord::bound(&text, &policy);
    let sealed_key = master
        .seal(&header.package_id, &bound, &key, &mut SystemRng::default())
        .ok_or(CliError::KeyGeneration)?;
    let record = LicenceRecord { revoked: false, licence: text, policy, sealed_key };
    store.add(&licensed, &record, now_unix())?;
    let text = format!("stored licence {} of package {package_id}", licensed.licence.serial);
    done(&store, args.json, None, Some(package_id), &text)
}

/// Runs `chrysalis key-broker revoke`.
///
/// # Errors
/// [`BrokerError::Unknown`].
pub fn revoke(args: &RevokeArgs) -> Result<(), CliError> {
    let id = hex::decode(&args.package_id).and_then(|bytes| bytes.try_into().ok());
    let id = id.ok_or_else(|| BrokerError::PackageId { text: args.package_id.clone() })?;
    let mut store = Store::open(&args.store)?;
    store.revoke(id, now_unix())?;
    let package_id = hex::encode(&id);
    let text = format!("revoked the licence of package {package_id}");
    done(&store, args.json, None, Some(package_id), &text)
}

/// Runs `chrysalis key-broker status`.
///
/// # Errors
/// [`BrokerError`].
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    let packages = Store::open(&args.store)?.packages()?;
    let mut states: Vec<State> = packages.values().map(state).collect();
    states.sort_by(|a, b| (&a.model, &a.package_id).cmp(&(&b.model, &b.package_id)));
    if args.json {
        return output::json(&states);
    }
    for state in states {
        let of = |budget: Option<u64>| budget.map_or_else(|| "unlimited".into(), |b| b.to_string());
        output::line(&format!(
            "{} of {:?}: licence {}{}, until {}, svn floor {}; releases {} of {}, tokens {} of {}",
            state.package_id,
            state.model,
            state.serial,
            if state.revoked { " REVOKED" } else { "" },
            state.expires,
            state.svn_floor,
            state.releases_spent,
            of(state.releases),
            state.tokens_spent,
            of(state.token_budget),
        ))?;
    }
    Ok(())
}

/// Runs `chrysalis key-broker log`.
///
/// # Errors
/// [`BrokerError::Log`] names the first line that is wrong.
pub fn log(args: &LogArgs) -> Result<(), CliError> {
    let path = store::log_path(&args.store);
    if !path.exists() {
        return Err(BrokerError::NoStore { path: args.store.clone() }.into());
    }
    let failed = |source| BrokerError::Log { path: path.clone(), source };
    if !args.verify {
        let mut entries = Vec::new();
        log::verify(&path, 0, None, |entry| entries.push(entry.clone())).map_err(failed)?;
        return entries.iter().try_for_each(|entry| print(entry, args.json));
    }
    // While a broker runs, the store is its own, and the file is what there is to look at.
    let compared = match Store::open(&args.store) {
        Ok(_) => true,
        Err(BrokerError::InUse { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let wanted = match &args.head {
        None => None,
        Some(text) => {
            let hash = hex::decode(text).and_then(|bytes| bytes.try_into().ok());
            Some(hash.ok_or(CliError::Usage("--head takes 64 hexadecimal digits"))?)
        }
    };
    let summary = log::verify(&path, 0, wanted, |_| {}).map_err(failed)?;
    if let Some(head) = wanted.filter(|_| !summary.found) {
        return Err(failed(LogError::Head { head: hex::encode(&head) }).into());
    }
    report(&summary, compared, args.json)
}

fn report(summary: &Summary, compared: bool, json: bool) -> Result<(), CliError> {
    let verified = Verified {
        entries: summary.head.count,
        head: hex::encode(&summary.head.hash),
        releases: summary.releases.values().sum(),
        compared_with_store: compared,
    };
    if json {
        return output::json(&verified);
    }
    output::line(&format!(
        "{} entries, {} releases, each line follows from the one before\nhead {}{}",
        verified.entries,
        verified.releases,
        verified.head,
        if compared {
            ""
        } else {
            "\na broker is running: the end was not compared with its store"
        }
    ))
}

fn print(entry: &Entry, json: bool) -> Result<(), CliError> {
    if json {
        return output::line(&serde_json::to_string(entry).unwrap_or_default());
    }
    let known = [
        ("package", &entry.package_id),
        ("chip", &entry.chip),
        ("statement", &entry.statement),
        ("from", &entry.address),
    ];
    let known: String = known
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!(" {name} {value}"))
        .collect();
    let detail =
        if entry.detail.is_empty() { String::new() } else { format!(": {}", entry.detail) };
    let event = format!("{:?}", entry.event).to_lowercase();
    output::line(&format!("{} {} {event} {}{known}{detail}", entry.number, entry.time, entry.code))
}

fn state(package: &Package) -> State {
    let licence = &package.licensed.licence;
    State {
        package_id: hex::encode(&licence.package_id),
        model: licence.model.clone(),
        serial: licence.serial,
        revoked: package.record.revoked,
        expires: timestamp(licence.expires),
        svn_floor: package.floor,
        releases_spent: package.spent.releases,
        releases: licence.releases,
        tokens_spent: package.spent.tokens,
        token_budget: licence.token_budget,
    }
}

fn header(package: &Path) -> Result<PublicHeader, CliError> {
    let main = PackageFiles::new(package).main()?;
    PublicHeader::parse(&main).map_err(CliError::package(package))
}

fn done(
    store: &Store,
    json: bool,
    master_key_made: Option<bool>,
    package_id: Option<String>,
    text: &str,
) -> Result<(), CliError> {
    if !json {
        return output::line(text);
    }
    let head = store.head();
    let (log_count, log_head) = (head.count, hex::encode(&head.hash));
    output::json(&Done { master_key_made, package_id, log_count, log_head })
}
