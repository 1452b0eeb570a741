//! The vectors as this code writes them. Each has a kind, an expectation and named values.

use chrysalis_protocol::bundle::{Bundle, Endorsements};
use chrysalis_protocol::frame::{self, FrameKind};
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use chrysalis_protocol::receipt::{Receipt, hash};
use chrysalis_protocol::statement::{
    GpuFlags, PadProfile, ServingPolicy, Statement, Tee, gpu_digest,
};
use chrysalis_protocol::tdx_collateral::TdxCollateral;

use crate::sealed_cases;
use crate::support::{SeededRng, key_config, policy, receipt, receipt_key, statement};

/// A vector: the name of its file, what it shows and what is in it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    pub(crate) fields: Vec<(&'static str, String)>,
}

impl Case {
    pub(crate) fn new(name: &'static str, about: &str, kind: &str, expect: &str) -> Self {
        let text = |text: &str| text.to_owned();
        let fields = vec![("kind", text(kind)), ("expect", text(expect))];
        let about = text(about);
        Self { name, about, fields }
    }

    pub(crate) fn hex(mut self, name: &'static str, bytes: impl AsRef<[u8]>) -> Self {
        self.fields.push((name, to_hex(bytes.as_ref())));
        self
    }

    pub(crate) fn text(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    pub(crate) fn number(self, name: &'static str, value: u64) -> Self {
        self.text(name, &value.to_string())
    }

    pub(crate) fn fields_of(&self) -> Vec<(String, String)> {
        self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    pub(crate) fn to_text(&self) -> String {
        self.fields
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .fold(format!("# {}.\n", self.about), |text, line| text + &line)
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn all() -> Vec<Case> {
    [
        frames(),
        statements(),
        report_data(),
        configs(),
        bundles(),
        collaterals(),
        gpus(),
        receipts(),
        sealed_cases::requests(),
        sealed_cases::responses(),
        sealed_cases::acks(),
        sealed_cases::releases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn frames() -> Vec<Case> {
    let mut bytes = Vec::new();
    frame::write(FrameKind::HostData, 0x0102_0304_0506_0708, b"a portion", &mut bytes);
    let with = |offset: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[offset] = value;
        changed
    };
    let refused = |name, about, because, bytes: Vec<u8>| {
        Case::new(name, about, "frame", because).hex("bytes", bytes)
    };
    vec![
        Case::new("frame_data", "a DATA frame from the host", "frame", "accept")
            .hex("bytes", &bytes)
            .number("frame_kind", 5)
            .number("stream", 0x0102_0304_0506_0708)
            .hex("body", b"a portion"),
        Case::new("frame_short", "the body is not complete yet", "frame", "incomplete")
            .hex("bytes", &bytes[..bytes.len() - 1]),
        refused(
            "frame_unknown_kind",
            "0x0d is no kind",
            "no frame has the kind 0x0d",
            with(5, 0x0D),
        ),
        refused(
            "frame_flags",
            "flags are reserved",
            "a reserved byte is 0x01, not zero",
            with(7, 1),
        ),
        refused(
            "frame_long",
            "the body is longer than 65,512 bytes",
            "the body has 16777225 bytes, more than 65512",
            with(16, 1),
        ),
    ]
}

fn statements() -> Vec<Case> {
    let accepted = |name, about, statement: &Statement| {
        Case::new(name, about, "statement", "accept")
            .hex("bytes", statement.to_bytes())
            .hex("digest", statement.digest())
            .hex("report_data", statement.report_data().to_bytes())
            .hex("gpu_challenge", statement.gpu_challenge())
    };
    let simulated = Statement {
        tee: Tee::Simulated,
        gpu_required: false,
        gpu_digest: [0; 48],
        gpu_count: 0,
        gpu_flags: GpuFlags::default(),
        ..statement()
    };
    let changed = |name, about, because, offset: usize, value: u8| {
        let mut bytes = statement().to_bytes();
        bytes[offset] = value;
        Case::new(name, about, "statement", because).hex("bytes", bytes)
    };
    vec![
        accepted("statement_serve", "a serve statement on SEV-SNP with two GPUs", &statement()),
        accepted("statement_simulated", "a simulated platform without a GPU", &simulated),
        changed(
            "statement_unknown_tee",
            "3 is no platform",
            "no platform has the number 0x03",
            9,
            3,
        ),
        changed(
            "statement_devtools",
            "gpu_flags bit 2 must be 0",
            "a GPU runs with its developer tools on",
            339,
            0x0F,
        ),
        changed(
            "statement_reserved",
            "the last 32 bytes are reserved",
            "a reserved byte is 0x01, not zero",
            511,
            1,
        ),
    ]
}

fn report_data() -> Vec<Case> {
    let report_data = statement().report_data().to_bytes();
    let mut other_hash = report_data;
    other_hash[9] = 1;
    vec![
        Case::new("report_data", "report data of statement_serve", "report_data", "accept")
            .hex("bytes", report_data)
            .hex("digest", statement().digest()),
        Case::new(
            "report_data_other_hash",
            "the hash must be SHA-384",
            "report_data",
            "the report data name the hash 0x01, not SHA-384 (0x02)",
        )
        .hex("bytes", other_hash),
    ]
}

fn configs() -> Vec<Case> {
    let config = key_config();
    let mut other_kem = config.to_bytes();
    other_kem[9] = 0x20;
    let mut logging = policy().to_bytes();
    logging[21] = 1;
    let flat = PadProfile::Flat;
    let flat = ServingPolicy { pad_profile: flat, ..policy() };
    vec![
        Case::new("key_config", "an epoch's sealing key", "key_config", "accept")
            .hex("seed", SeededRng::new("sealing key").array::<32>())
            .hex("bytes", config.to_bytes())
            .hex("digest", config.digest())
            .hex("key_id", config.key_id()),
        Case::new(
            "key_config_other_kem",
            "X-Wing is the only KEM",
            "key_config",
            "the key configuration's KEM is 0x6420, not 0x647a",
        )
        .hex("bytes", other_kem),
        Case::new("policy", "frames on a tick, KV blocks shared by salt", "policy", "accept")
            .hex("bytes", policy().to_bytes())
            .hex("digest", policy().digest()),
        Case::new("policy_flat", "the full envelope", "policy", "accept")
            .hex("bytes", flat.to_bytes())
            .hex("digest", flat.digest()),
        Case::new(
            "policy_logging",
            "there is no logging to state",
            "policy",
            "the serving policy's logging is 1, which is not defined",
        )
        .hex("bytes", logging),
    ]
}

fn bundles() -> Vec<Case> {
    let (statement, report, package) = (statement().to_bytes(), [1; 1_184], [2; 360]);
    let (key_config, policy) = (key_config().to_bytes(), policy().to_bytes());
    let challenges: Vec<[u8; 32]> =
        (0..5).map(|i| SeededRng::new(&format!("challenge {i}")).array()).collect();
    let tree = Tree::new(&challenges).unwrap();
    let path = tree.path(3).unwrap();
    let freshness = Freshness { statement: &statement, report: &report, path }.to_bytes();
    let bundle = Bundle {
        statement: &statement,
        report: &report,
        key_config: &key_config,
        policy: &policy,
        gpu: None,
        package: &package,
        freshness: Some(&freshness),
        endorsements: Endorsements { vcek: Some(b"certificate"), ..Endorsements::default() },
    };
    let bytes = bundle.to_bytes();
    let doubled = [&bytes[..], &[0, 7, 0, 0, 0, 0, 0, 1, 0]].concat();
    vec![
        Case::new("bundle", "evidence with freshness and a certificate", "bundle", "accept")
            .hex("bytes", &bytes)
            .hex("statement", statement)
            .hex("freshness", &freshness),
        Case::new(
            "bundle_order",
            "types ascend",
            "bundle",
            "section 0x0007 comes after section 0x0081",
        )
        .hex("bytes", doubled),
        Case::new(
            "bundle_cut",
            "a section is cut short",
            "bundle",
            "the input ends inside a field: 11 bytes needed, 10 left",
        )
        .hex("bytes", &bytes[..bytes.len() - 1]),
        Case::new("freshness", "the fourth of five challenges", "freshness", "accept")
            .hex("challenges", challenges.concat())
            .hex("challenge", challenges[3])
            .hex("bytes", freshness)
            .hex("root", tree.root()),
    ]
}

fn gpus() -> Vec<Case> {
    let devices = [
        Device { report: b"report of the first GPU", chain: b"its certificates" },
        Device { report: b"report of the second GPU", chain: b"its certificates" },
    ];
    let section = Device::to_bytes(&devices);
    let endorsements =
        GpuEndorsements { rims: vec![b"<driver/>", b"<vbios/>"], statuses: vec![b"\x30\x00"] };
    let endorsements = endorsements.to_bytes();
    let mut unordered = endorsements.clone();
    unordered[8..17].copy_from_slice(b"<zriver/>");
    vec![
        Case::new("gpu", "two GPUs, and what the statement has for them", "gpu", "accept")
            .hex("bytes", &section)
            .hex("report_1", devices[1].report)
            .hex("digest", gpu_digest(&section)),
        Case::new("gpu_empty_report", "a report has bytes", "gpu", EMPTY_REPORT)
            .hex("bytes", [0, 0, 0, 0, 0, 0, 0, 1, 0]),
        Case::new("gpu_endorsements", "two manifests, one status", "gpu_endorsements", "accept")
            .hex("bytes", &endorsements)
            .hex("manifest_1", b"<vbios/>"),
        Case::new(
            "gpu_endorsements_order",
            "manifests ascend",
            "gpu_endorsements",
            "manifest 1 does not come after the one before it",
        )
        .hex("bytes", unordered),
    ]
}

const EMPTY_REPORT: &str = "a report of 0 bytes, not of 1 to 8192";

fn collaterals() -> Vec<Case> {
    let collateral = TdxCollateral {
        root_crl: b"root list".to_vec(),
        pck_crl: b"list".to_vec(),
        tcb_info_signer: b"certificate".to_vec(),
        tcb_info: "{\"id\":\"TDX\"}".to_owned(),
        tcb_info_signature: [3; 64],
        qe_identity_signer: b"certificate".to_vec(),
        qe_identity: "{\"id\":\"TD_QE\"}".to_owned(),
        qe_identity_signature: [4; 64],
    }
    .to_bytes();
    vec![
        Case::new("tdx_collateral", "what Intel says of a platform", "tdx_collateral", "accept")
            .hex("bytes", &collateral)
            .hex("root_crl", b"root list")
            .hex("pck_crl", b"list")
            .hex("tcb_info_signer", b"certificate")
            .hex("tcb_info", b"{\"id\":\"TDX\"}")
            .hex("tcb_info_signature", [3; 64])
            .hex("qe_identity_signer", b"certificate")
            .hex("qe_identity", b"{\"id\":\"TD_QE\"}")
            .hex("qe_identity_signature", [4; 64]),
        Case::new(
            "tdx_collateral_cut",
            "the last signature is cut short",
            "tdx_collateral",
            "the collateral: the input ends inside a field: 64 bytes needed, 63 left",
        )
        .hex("bytes", &collateral[..collateral.len() - 1]),
        Case::new(
            "tdx_collateral_extended",
            "a byte follows",
            "tdx_collateral",
            "the collateral: 1 bytes follow the last field",
        )
        .hex("bytes", [&collateral[..], &[0]].concat()),
    ]
}

fn receipts() -> Vec<Case> {
    let (receipt, key) = (receipt(3, [5; 32]), receipt_key());
    let signed = receipt.sign(&key);
    let exact = Receipt { output_units: 250, ..receipt }.sign(&key);
    let mut forged = signed;
    forged[215] ^= 64;
    let seed = SeededRng::new("receipt key").array::<32>();
    let refused = |name, about, because, bytes: [u8; 320]| {
        let case = Case::new(name, about, "receipt", because).hex("bytes", bytes);
        case.hex("public_key", receipt_key().public_key())
    };
    vec![
        Case::new("receipt", "the last receipt of a stream", "receipt", "accept")
            .hex("seed", seed)
            .hex("bytes", signed)
            .hex("public_key", key.public_key())
            .hex("hash", hash(&signed))
            .number("output_units", 256),
        refused(
            "receipt_forged",
            "64 output units were added after the signature",
            "the signature does not match the receipt key",
            forged,
        ),
        refused(
            "receipt_exact",
            "counts are multiples of the quantum",
            "output units are 250, not a multiple of 64",
            exact,
        ),
    ]
}
