//! `chrysalis receipts`: what a host presents for payment, judged (docs/receipts.md), and the vouchers that tie it to a
//! payer.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use chrysalis_attestation::policy::{AppraisalPolicy, Challenge, MaxAge};
use chrysalis_client::ClientError;
use chrysalis_protocol::ledger::{Account, Finding, Ledger, Place, Sum};
use chrysalis_protocol::receipt::{RECEIPT_LEN, payer_tag};
use chrysalis_protocol::request::VOUCHER_MAX;
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::rng::SystemRng;
use clap::{Args, Subcommand};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::error::CliError;
use crate::{hex, key_file, output, remote};

/// `chrysalis receipts`.
#[derive(Debug, Args)]
pub struct ReceiptsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ReceiptsCommand,
}

/// The subcommands of `chrysalis receipts`.
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// Verify receipts under the keys of their boots, name everything that is wrong, and add up by payer
    Verify(ReceiptsVerifyArgs),
    /// Make a voucher, if the file does not exist, and say the payer tag to escrow for
    Voucher(VoucherArgs),
}

/// `chrysalis receipts verify`.
#[derive(Debug, Args)]
pub struct ReceiptsVerifyArgs {
    /// Files of receipts, 320 bytes each; one for each connection of the host, in the order in which they came
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Evidence of a boot (`chrysalis verify --save`), one for each epoch in which receipts were signed
    #[arg(long, value_name = "BUNDLE", required = true)]
    pub evidence: Vec<PathBuf>,
    /// Appraisal policy (TOML) for the evidence; its age is not asked for
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// Payer tags for which somebody escrowed: 64 hexadecimal digits and a name, one a line; # opens a comment
    #[arg(long, value_name = "FILE")]
    pub vouchers: Option<PathBuf>,
    /// Others keep a part of the receipts (a payer judges his own): gaps are no fault
    #[arg(long)]
    pub partial: bool,
    /// Judge the evidence as of this time, in seconds since 1970 [default: now]
    #[arg(long, value_name = "UNIX_TIME")]
    pub at: Option<u64>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis receipts voucher`.
#[derive(Debug, Args)]
pub struct VoucherArgs {
    /// The voucher, a secret between its owner and the enclaves that he asks
    pub file: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Names of payers, by tag.
type Names = BTreeMap<[u8; 32], String>;

/// What `receipts verify --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    receipts: usize,
    boots: Vec<BootReport>,
    payers: Vec<PayerReport>,
    findings: Vec<FindingReport>,
    findings_unlisted: usize,
    vouchers_checked: bool,
    gaps_checked: bool,
}

#[derive(Debug, Serialize)]
struct BootReport {
    boot_id: String,
    receipts: usize,
}

#[derive(Debug, Serialize)]
struct PayerReport {
    payer_tag: String,
    name: Option<String>,
    requests: u64,
    cancelled: u64,
    failed: u64,
    prompt_units: u64,
    output_units: u64,
    cached_units: u64,
    reasoning_units: u64,
}

#[derive(Debug, Serialize)]
struct FindingReport {
    file: PathBuf,
    receipt: usize,
    code: &'static str,
    what: String,
}

/// Runs `chrysalis receipts`.
///
/// # Errors
/// [`CliError::Receipts`] when anything is wrong with a receipt.
pub fn run(args: &ReceiptsArgs) -> Result<(), CliError> {
    match &args.command {
        ReceiptsCommand::Verify(args) => verify(args),
        ReceiptsCommand::Voucher(args) => make_voucher(args),
    }
}

fn verify(args: &ReceiptsVerifyArgs) -> Result<(), CliError> {
    let names = args.vouchers.as_deref().map(names).transpose()?;
    let escrowed = names.as_ref().map(|names| names.keys().copied().collect::<HashSet<_>>());
    let mut ledger = Ledger::new(escrowed, args.partial);
    state(args, &mut ledger)?;
    for (file, path) in (1..).zip(&args.files) {
        take(path, file, &mut ledger).map_err(CliError::io(path))?;
    }
    let account = ledger.close();
    if account.receipts == 0 {
        return Err(CliError::Usage("the files hold no receipt"));
    }
    let report = report(args, names.as_ref(), &account);
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    match account.findings.len() + account.unlisted {
        0 => Ok(()),
        count => Err(CliError::Receipts { count }),
    }
}

/// Appraises the evidence and tells the ledger what it proves.
fn state(args: &ReceiptsVerifyArgs, ledger: &mut Ledger) -> Result<(), CliError> {
    // Receipts are judged long after they were signed: what matters is whose key signed them, not how long ago the
    // platform said so.
    let policy = AppraisalPolicy { max_age: MaxAge::Epoch, ..remote::policy(&args.policy)? };
    let challenge = Challenge { nonce: None, now_unix: args.at.unwrap_or_else(remote::now_unix) };
    for path in &args.evidence {
        let bundle = fs::read(path).map_err(CliError::io(path))?;
        let enclave = policy.appraise(&bundle, &challenge).map_err(ClientError::from)?;
        ledger
            .state(enclave.statement(), enclave.serving_policy())
            .map_err(|source| CliError::Ledger { path: path.clone(), source })?;
    }
    Ok(())
}

/// Hands a file's receipts to the ledger, a rest that is none too.
fn take(path: &Path, file: usize, ledger: &mut Ledger) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    for number in 1.. {
        let mut receipt = Vec::with_capacity(RECEIPT_LEN);
        reader.by_ref().take(RECEIPT_LEN as u64).read_to_end(&mut receipt)?;
        if receipt.is_empty() {
            break;
        }
        ledger.take(Place { file, number }, &receipt);
    }
    Ok(())
}

/// Reads a list of payer tags.
fn names(path: &Path) -> Result<Names, CliError> {
    let text = fs::read_to_string(path).map_err(CliError::io(path))?;
    let mut names = Names::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.split('#').next().unwrap_or_default().trim();
        let (tag, name) = content.split_once(char::is_whitespace).unwrap_or((content, ""));
        if content.is_empty() {
            continue;
        }
        let bytes = hex::decode(tag).and_then(|bytes| bytes.try_into().ok());
        let Some(tag) = bytes else {
            return Err(CliError::Vouchers { path: path.to_owned(), line: number });
        };
        names.insert(tag, name.trim().to_owned());
    }
    Ok(names)
}

fn report(args: &ReceiptsVerifyArgs, names: Option<&Names>, account: &Account) -> Report {
    let payer = |(tag, sum): (&[u8; 32], &Sum)| PayerReport {
        payer_tag: hex::encode(tag),
        name: names.and_then(|names| names.get(tag)).filter(|name| !name.is_empty()).cloned(),
        requests: sum.requests,
        cancelled: sum.cancelled,
        failed: sum.failed,
        prompt_units: sum.prompt_units,
        output_units: sum.output_units,
        cached_units: sum.cached_units,
        reasoning_units: sum.reasoning_units,
    };
    let finding = |Finding { place, fault }: &Finding| FindingReport {
        file: args.files.get(place.file.wrapping_sub(1)).cloned().unwrap_or_default(),
        receipt: place.number,
        code: fault.code(),
        what: fault.to_string(),
    };
    Report {
        receipts: account.receipts,
        boots: account
            .boots
            .iter()
            .map(|(boot_id, receipts)| BootReport {
                boot_id: hex::encode(boot_id),
                receipts: *receipts,
            })
            .collect(),
        payers: account.payers.iter().map(payer).collect(),
        findings: account.findings.iter().map(finding).collect(),
        findings_unlisted: account.unlisted,
        vouchers_checked: args.vouchers.is_some(),
        gaps_checked: !args.partial,
    }
}

fn print(report: &Report) -> Result<(), CliError> {
    output::line(&format!("{} receipts", report.receipts))?;
    for BootReport { boot_id, receipts } in &report.boots {
        output::line(&format!("  boot {boot_id}: {receipts} signed by its key"))?;
    }
    output::line("\nowed, in tokens rounded up to the quantum of each request:")?;
    for payer in &report.payers {
        let nobody = payer.payer_tag == hex::encode(&payer_tag(&[]));
        let name = payer.name.as_deref().unwrap_or(if nobody { "no voucher" } else { "" });
        output::line(&format!(
            "  {} {name}\n    {} requests ({} cancelled, {} failed): {} prompt, {} output, {} cached, {} reasoning",
            payer.payer_tag,
            payer.requests,
            payer.cancelled,
            payer.failed,
            payer.prompt_units,
            payer.output_units,
            payer.cached_units,
            payer.reasoning_units,
        ))?;
    }
    if !report.vouchers_checked {
        output::line("\nnot checked: whether anybody escrowed for these payer tags (--vouchers)")?;
    }
    if !report.gaps_checked {
        output::line("\nnot checked: whether receipts are missing (--partial)")?;
    }
    let (listed, unlisted) = (report.findings.len(), report.findings_unlisted);
    output::line(&format!("\n{} findings", listed + unlisted))?;
    for FindingReport { file, receipt, code, what } in &report.findings {
        output::line(&format!("  {} receipt {receipt}: {code}: {what}", file.display()))?;
    }
    if unlisted > 0 {
        output::line(&format!("  and {unlisted} more"))?;
    }
    Ok(())
}

/// What `receipts voucher --json` prints.
#[derive(Debug, Serialize)]
struct VoucherReport {
    payer_tag: String,
    made: bool,
}

fn make_voucher(args: &VoucherArgs) -> Result<(), CliError> {
    let made = !args.file.exists();
    if made {
        let secret: Secret<32> = Secret::random(&mut SystemRng::default());
        key_file::create(&args.file, secret.expose())?;
    }
    let tag = hex::encode(&payer_tag(&voucher(&args.file)?));
    if args.json {
        return output::json(&VoucherReport { payer_tag: tag, made });
    }
    output::line(&tag)
}

/// Reads a voucher: the file's bytes as they are.
///
/// # Errors
/// [`CliError::KeyFile`] when it is empty or too long.
pub fn voucher(path: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let bytes = Zeroizing::new(fs::read(path).map_err(CliError::io(path))?);
    if bytes.is_empty() || bytes.len() > VOUCHER_MAX {
        let expected = "a voucher: 1 to 256 bytes";
        return Err(CliError::KeyFile { path: path.to_owned(), expected });
    }
    Ok(bytes)
}
