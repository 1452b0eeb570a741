//! Writes manifests as NVIDIA does, and their canonical form from the same data by hand: the tests
//! must not ask the code that they hold to account.

use aws_lc_rs::digest::{SHA384, digest};

use super::der::seq;
use super::device::{ROOT, root_key};
use super::issue::{BASIC_CONSTRAINTS, CertificateDraft, Key, base64, common_name, root_name};

/// A manifest to be signed.
#[derive(Clone)]
pub(crate) struct RimDraft {
    pub edition: &'static str,
    pub product: String,
    pub version: String,
    /// What is expected of each measurement; nothing where it is not active.
    pub golden: Vec<Vec<[u8; 48]>>,
    pub algorithm: &'static str,
    /// Text that is replaced before the manifest is signed, wherever it stands.
    pub twist: (&'static str, &'static str),
}

impl RimDraft {
    /// A manifest that expects `measurements` at `indices`.
    pub(crate) fn new(version: &str, measurements: &[[u8; 48]], indices: &[usize]) -> Self {
        let mut golden = vec![Vec::new(); 64];
        for &index in indices {
            golden[index] = vec![[0xEE; 48], measurements[index]];
        }
        let algorithm = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
        let version = version.to_owned();
        let product = "GH100".to_owned();
        Self { edition: "GPU", product, version, golden, algorithm, twist: ("\0", "") }
    }

    /// The manifest, signed by `signer`.
    pub(crate) fn sign(&self, signer: &Signer) -> String {
        let signed = self.twisted(&self.document(true, ""));
        let digest = base64(digest(&SHA384, signed.as_bytes()).as_ref());
        let info = self.signed_info(&digest, true);
        let value = base64(&signer.key.sign_fixed(info.as_bytes()));
        let certificates: String = signer
            .chain
            .iter()
            .map(|der| format!("<ds:X509Certificate>{}</ds:X509Certificate>", lines(&base64(der))))
            .collect();
        let signature = format!(
            "<ds:Signature xmlns:ds=\"{DS}\">{}<ds:SignatureValue>{value}</ds:SignatureValue>\
             <ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>",
            self.signed_info(&digest, false)
        );
        self.twisted(&self.document(false, &signature)) + "\n"
    }

    fn twisted(&self, document: &str) -> String {
        document.replace(self.twist.0, self.twist.1)
    }

    fn document(&self, canonical: bool, signature: &str) -> String {
        let entity = element(
            "ns0:Entity",
            &[("name", "NVIDIA Corporation"), ("role", "softwareCreator tagCreator")],
            canonical,
        );
        let meta = element(
            "ns0:Meta",
            &[
                ("xmlns:ns1", MODEL),
                ("colloquialVersion", &self.version),
                ("edition", self.edition),
                ("product", &self.product),
                ("revision", "r1"),
                ("PayloadType", "direct"),
                ("ns1:BindingSpec", "RIMIM"),
                ("ns1:BindingSpecVersion", "1.01"),
                ("ns1:PlatformManufacturerId", "5703"),
            ],
            canonical,
        );
        let resources: String = self
            .golden
            .iter()
            .enumerate()
            .map(|(index, digests)| format!("        {}\n", resource(index, digests, canonical)))
            .collect();
        let attributes = attributes(
            &[
                ("xmlns", SWID),
                ("xmlns:ns0", SWID),
                ("xmlns:ns2", ENC),
                ("corpus", "false"),
                ("name", &self.product),
                ("patch", "false"),
                ("supplemental", "false"),
                ("tagId", "simulated"),
            ],
            canonical,
        );
        format!(
            "<SoftwareIdentity{attributes}>\n    {entity}\n    {meta}\n    \
             <ns0:Payload xmlns:SHA384=\"{ENC}\">\n{resources}    </ns0:Payload>\n{signature}\
             </SoftwareIdentity>"
        )
    }

    fn signed_info(&self, digest: &str, canonical: bool) -> String {
        let bound = if canonical {
            format!(" xmlns=\"{SWID}\" xmlns:ds=\"{DS}\" xmlns:ns0=\"{SWID}\" xmlns:ns2=\"{ENC}\"")
        } else {
            String::new()
        };
        let empty =
            |name: &str, algorithm: &str| element(name, &[("Algorithm", algorithm)], canonical);
        format!(
            "<ds:SignedInfo{bound}>{}{}<ds:Reference URI=\"\"><ds:Transforms>{}{}</ds:Transforms>{}\
             <ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>",
            empty("ds:CanonicalizationMethod", C14N),
            empty("ds:SignatureMethod", self.algorithm),
            empty("ds:Transform", "http://www.w3.org/2000/09/xmldsig#enveloped-signature"),
            empty("ds:Transform", C14N),
            empty("ds:DigestMethod", "http://www.w3.org/2001/04/xmldsig-more#sha384"),
        )
    }
}

/// Who signs manifests.
pub(crate) struct Signer {
    pub key: Key,
    /// Leaf first.
    pub chain: Vec<Vec<u8>>,
    pub leaf: CertificateDraft,
    pub authority: Key,
}

impl Signer {
    pub(crate) fn new() -> Self {
        let (key, authority) = (Key::generate(), Key::generate());
        let name = common_name("simulated manifests L3");
        let mut issuer = CertificateDraft::authority(9, &root_name(), &name, authority.point());
        // A path length of 0: it certifies signers and no further authorities.
        issuer.extensions[0] = (
            BASIC_CONSTRAINTS.to_vec(),
            true,
            seq(&[b"\x01\x01\xff".to_vec(), b"\x02\x01\x00".to_vec()]),
        );
        let leaf =
            CertificateDraft::signer(10, &name, &common_name("simulated manifests"), key.point());
        let chain = vec![leaf.sign(&authority), issuer.sign(&root_key()), ROOT.to_vec()];
        Self { key, chain, leaf, authority }
    }
}

fn resource(index: usize, digests: &[[u8; 48]], canonical: bool) -> String {
    let active = if digests.is_empty() { "False" } else { "True" };
    let digests = if digests.is_empty() { &[[0; 48]] } else { digests };
    let hex = |digest: &[u8; 48]| digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let hashes: Vec<(String, String)> =
        digests.iter().enumerate().map(|(i, d)| (format!("ns2:Hash{i}"), hex(d))).collect();
    let (index, count) = (index.to_string(), digests.len().to_string());
    let name = format!("Measurement_{index}");
    let mut attributes = vec![
        ("type", "Measurement"),
        ("index", &index),
        ("active", active),
        ("alternatives", &count),
    ];
    attributes.extend(hashes.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    attributes.extend([("name", name.as_str()), ("size", "48")]);
    element("ns0:Resource", &attributes, canonical)
}

fn element(name: &str, values: &[(&str, &str)], canonical: bool) -> String {
    let attributes = attributes(values, canonical);
    if canonical {
        format!("<{name}{attributes}></{name}>")
    } else {
        format!("<{name}{attributes}/>")
    }
}

fn attributes(values: &[(&str, &str)], canonical: bool) -> String {
    let mut values = values.to_vec();
    if canonical {
        values.sort_by_key(|(name, _)| (!name.starts_with("xmlns"), name.contains(':'), *name));
    }
    values.iter().map(|(name, value)| format!(" {name}=\"{value}\"")).collect()
}

fn lines(text: &str) -> String {
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    lines.join("\n") + "\n"
}

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const ENC: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const DS: &str = "http://www.w3.org/2000/09/xmldsig#";
const C14N: &str = "http://www.w3.org/2006/12/xml-c14n11";
const MODEL: &str = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
