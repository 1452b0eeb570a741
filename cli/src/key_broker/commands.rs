//! What a broker's operator does: make a store, store licences, take them back, look.

use std::fs;
use std::path::Path;

use chrysalis_protocol::package::PublicHeader;
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::rng::SystemRng;
use serde::Serialize;

use super::admin::{Done, Keeper, Request};
use super::args::{AddArgs, InitArgs, LicenceArgs, LogArgs, RevokeArgs, StatusArgs};
use super::error::BrokerError;
use super::licence::{self, Licensed, now_unix};
use super::log::{self, Entry, Head, LogError, Summary};
use super::master::MasterKey;
use super::record::LicenceRecord;
use super::store::{self, Store};
use crate::error::CliError;
use crate::{hex, key_file, output, policy_file};

/// What `init`, `add` and `revoke` print with `--json`.
#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key_made: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_id: Option<String>,
    log_count: u64,
    log_head: String,
}

/// What `log --verify --json` prints.
#[derive(Serialize)]
struct Verified {
    entries: u64,
    head: String,
    releases: u64,
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
    let Head { count, hash } = store.head();
    done(args.json, Some(made), None, (count, hex::encode(&hash)), &text)
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
    let mut keeper = Keeper::of(&args.at.store)?;
    let bound = LicenceRecord::bound(&text, &policy);
    let sealed_key = master
        .seal(&header.package_id, &bound, &key, &mut SystemRng::default())
        .ok_or(CliError::KeyGeneration)?;
    let record = LicenceRecord { revoked: false, licence: text, policy, sealed_key };
    let (record, mark) = (hex::encode(&record.to_bytes()), hex::encode(&master.mark()));
    let Done { log_count, log_head, .. } =
        keeper.ask(&Request::Add { record, mark }, now_unix())?;
    let text = format!("stored licence {} of package {package_id}", licensed.licence.serial);
    done(args.json, None, Some(package_id), (log_count, log_head), &text)
}

/// Runs `chrysalis key-broker revoke`.
///
/// # Errors
/// [`BrokerError::Unknown`].
pub fn revoke(args: &RevokeArgs) -> Result<(), CliError> {
    let package_id = args.package_id.to_ascii_lowercase();
    let request = Request::Revoke { package_id: package_id.clone() };
    let Done { log_count, log_head, .. } = Keeper::of(&args.store)?.ask(&request, now_unix())?;
    let text = format!("revoked the licence of package {package_id}");
    done(args.json, None, Some(package_id), (log_count, log_head), &text)
}

/// Runs `chrysalis key-broker status`.
///
/// # Errors
/// [`BrokerError`].
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    let states = Keeper::of(&args.store)?.ask(&Request::Status, now_unix())?.packages;
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
        let mut printed = Ok(());
        let each = |entry: &Entry| {
            if printed.is_ok() {
                printed = print(entry, args.json);
            }
        };
        log::verify(&path, 0, None, each).map_err(failed)?;
        return printed;
    }
    // A store that is opened brings its file up to date; a broker that serves says how far it came.
    let known = Keeper::of(&args.store)?.ask(&Request::Status, now_unix())?;
    let wanted = match &args.head {
        None => None,
        Some(text) => {
            let hash = hex::decode(text).and_then(|bytes| bytes.try_into().ok());
            Some(hash.ok_or(CliError::Usage("--head takes 64 hexadecimal digits"))?)
        }
    };
    let summary = log::verify(&path, known.log_count, wanted, |_| {}).map_err(failed)?;
    let (found, expected) = (summary.head.count, known.log_count);
    if found < expected {
        return Err(failed(LogError::Short { found, expected }).into());
    }
    if summary.noted.map(|hash| hex::encode(&hash)) != Some(known.log_head) {
        return Err(failed(LogError::Other { number: expected }).into());
    }
    if let Some(head) = wanted.filter(|_| !summary.found) {
        return Err(failed(LogError::Head { head: hex::encode(&head) }).into());
    }
    report(&summary, args.json)
}

fn report(summary: &Summary, json: bool) -> Result<(), CliError> {
    let verified = Verified {
        entries: summary.head.count,
        head: hex::encode(&summary.head.hash),
        releases: summary.releases.values().sum(),
    };
    if json {
        return output::json(&verified);
    }
    output::line(&format!(
        "{} entries, {} releases, each line follows from the one before, and the end is the store's\nhead {}",
        verified.entries, verified.releases, verified.head,
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

fn header(package: &Path) -> Result<PublicHeader, CliError> {
    let main = PackageFiles::new(package).main()?;
    PublicHeader::parse(&main).map_err(CliError::package(package))
}

fn done(
    json: bool,
    master_key_made: Option<bool>,
    package_id: Option<String>,
    (log_count, log_head): (u64, String),
    text: &str,
) -> Result<(), CliError> {
    if !json {
        return output::line(text);
    }
    output::json(&Report { master_key_made, package_id, log_count, log_head })
}
