//! Reference integrity manifests: what a device's firmware and driver measure when they are the
//! published ones. TCG RIM information model 1.01 in SWID (ISO/IEC 19770-2:2015), signed by XML
//! Signature (W3C 2013): the one form that NVIDIA emits.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use chrysalis_protocol::hash::sha384;
use thiserror::Error;

use super::xml::{self, Element, XmlError};
use crate::gpu::certificate::{self, ChainError};
use crate::gpu::pem::base64;
use crate::gpu::{DeviceKind, GpuRoots, Runs, VerifiedDevice};

/// Why a manifest is not believed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RimError {
    /// Not UTF-8, or not of the subset of XML.
    #[error("the manifest is not of the xml that manifests are: {0}")]
    Xml(#[from] XmlError),
    /// Well-formed, and something other than a manifest.
    #[error("the manifest's {field} is not that of a manifest")]
    Form {
        /// What is missing or different.
        field: &'static str,
    },
    /// The certificates in it do not lead to the pinned root.
    #[error("the manifest's certificates: {0}")]
    Chain(#[from] ChainError),
    /// The certified key did not sign it.
    #[error("the certified key did not sign the manifest")]
    Signature,
    /// What is signed is another document.
    #[error("the manifest is not the document that was signed")]
    Digest,
}

impl RimError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Xml(_) => "gpu.rim.xml",
            Self::Form { .. } => "gpu.rim.form",
            Self::Chain(ChainError::Root { .. }) => "gpu.rim.root",
            Self::Chain(ChainError::Validity { .. }) => "gpu.rim.validity",
            Self::Chain(_) => "gpu.rim.certificate",
            Self::Signature => "gpu.rim.signature",
            Self::Digest => "gpu.rim.digest",
        }
    }
}

/// A manifest whose signature is good. [`Rim::verify`] is its only source.
#[derive(Clone, Debug)]
pub struct Rim {
    kind: DeviceKind,
    product: String,
    version: String,
    /// Expected digests by the index of the measurement, counted from 0; any of several.
    golden: BTreeMap<usize, Vec<[u8; 48]>>,
    /// Certificates in DER, back to back.
    pub(super) chain: Vec<u8>,
}

impl Rim {
    /// Verifies a manifest at Unix time `now`.
    ///
    /// # Errors
    /// The first check that fails, in the order of the numbers in the source.
    pub fn verify(bytes: &[u8], roots: GpuRoots, now: u64) -> Result<Self, RimError> {
        // 1. A document of the subset, with the parts of a manifest.
        let root = document(bytes)?;
        let Parts { entity, meta, payload, signature } = Parts::of(&root)?;

        // 2. Signed in the one way: algorithms, and a reference to the whole document.
        let signed = Signed::read(signature)?;

        // 3. By a key that the pinned root vouches for.
        let chain = certificate::verify(&signed.chain, roots.rim(), Some(now))?;
        let key = chain.certificates().first().ok_or(RimError::Signature)?;

        // 4. The signature, over the canonical form of SignedInfo.
        let message = signed.info.canonical(&[&root, signature], None);
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.point)
            .verify(message.as_bytes(), &signed.signature)
            .map_err(|_| RimError::Signature)?;

        // 5. The digest in it, over the canonical form of the document without the signature.
        let document = root.canonical(&[], Some("ds:Signature"));
        if sha384(&[document.as_bytes()]).as_slice() != signed.digest {
            return Err(RimError::Digest);
        }

        // 6. What it says.
        let (kind, product, version) = meta_of(&root, entity, meta)?;
        let golden = golden(payload)?;
        Ok(Self { kind, product, version, golden, chain: signed.chain })
    }

    /// The chip that it is for.
    #[must_use]
    pub fn product(&self) -> &str {
        &self.product
    }

    /// The driver's or VBIOS' version that it is for.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it is for this version of what such devices run.
    #[must_use]
    pub fn is_for(&self, device: &VerifiedDevice<'_>, version: &str) -> bool {
        self.kind == device.kind()
            && self.product == device.chip()
            && self.version.eq_ignore_ascii_case(version)
    }

    /// How many measurements it compares, and the indices of those that differ, from 0.
    ///
    /// # Errors
    /// [`crate::gpu::SpdmError`] when the report's state of the video decoder cannot be read.
    pub fn compare(
        &self,
        device: &VerifiedDevice<'_>,
    ) -> Result<(usize, Vec<usize>), crate::gpu::SpdmError> {
        let report = &device.report;
        // The firmware of a video decoder that does not run is not loaded.
        let idle = device.kind() == DeviceKind::Gpu && !report.nvdec0()?;
        let compared: Vec<_> =
            self.golden.iter().filter(|(index, _)| !(idle && **index == NVDEC0_INDEX)).collect();
        let differ = compared.iter().filter(|(index, expected)| {
            !report.measurements.get(**index).is_some_and(|found| expected.contains(found))
        });
        Ok((compared.len(), differ.map(|(index, _)| **index).collect()))
    }

    /// The first measurement that both expect something of.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<usize> {
        self.golden.keys().find(|index| other.golden.contains_key(index)).copied()
    }
}

/// What bytes say that they are, if they are a manifest at all; nothing about it is proved.
pub(super) struct Claimed {
    pub(super) kind: DeviceKind,
    pub(super) product: String,
    pub(super) version: String,
    /// Certificates in DER, back to back.
    pub(super) chain: Vec<u8>,
}

impl Claimed {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, RimError> {
        let root = document(bytes)?;
        let Parts { entity, meta, signature, .. } = Parts::of(&root)?;
        let (kind, product, version) = meta_of(&root, entity, meta)?;
        Ok(Self { kind, product, version, chain: Signed::read(signature)?.chain })
    }

    /// Whether it says that it is for the driver or the VBIOS of such a device.
    pub(super) fn is_for(&self, runs: &Runs) -> bool {
        let mut versions = runs.driver.iter().chain([&runs.vbios]);
        self.kind == runs.kind
            && self.product == runs.chip
            && versions.any(|version| self.version.eq_ignore_ascii_case(version))
    }
}

fn document(bytes: &[u8]) -> Result<Element<'_>, RimError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        RimError::Xml(XmlError { offset: error.valid_up_to(), expected: "utf-8" })
    })?;
    Ok(xml::parse(text)?)
}

/// The elements in a manifest.
struct Parts<'a> {
    entity: &'a Element<'a>,
    meta: &'a Element<'a>,
    payload: &'a Element<'a>,
    signature: &'a Element<'a>,
}

impl<'a> Parts<'a> {
    fn of(root: &'a Element<'a>) -> Result<Self, RimError> {
        let parts = root.elements().ok_or(RimError::Form { field: "content" })?;
        let [entity, meta, payload, signature] = parts.as_slice() else {
            return Err(RimError::Form { field: "content" });
        };
        for (element, name) in [
            (&root, "SoftwareIdentity"),
            (entity, "ns0:Entity"),
            (meta, "ns0:Meta"),
            (payload, "ns0:Payload"),
            (signature, "ds:Signature"),
        ] {
            if element.name != name {
                return Err(RimError::Form { field: name });
            }
        }
        for (element, name, uri) in [
            (&root, "xmlns", SWID),
            (&root, "xmlns:ns0", SWID),
            (&root, "xmlns:ns2", XMLENC_SHA384),
            (signature, "xmlns:ds", XMLDSIG),
        ] {
            if element.attribute(name) != Some(uri) {
                return Err(RimError::Form { field: name });
            }
        }
        Ok(Self { entity, meta, payload, signature })
    }
}

/// The signature, taken apart.
struct Signed<'a> {
    info: &'a Element<'a>,
    digest: Vec<u8>,
    signature: Vec<u8>,
    chain: Vec<u8>,
}

impl<'a> Signed<'a> {
    fn read(signature: &'a Element<'a>) -> Result<Self, RimError> {
        let [info, value, key_info] =
            children(signature, &["SignedInfo", "SignatureValue", "KeyInfo"])?;
        let [canonicalization, method, reference] =
            children(info, &["CanonicalizationMethod", "SignatureMethod", "Reference"])?;
        let [transforms, digest_method, digest] =
            children(reference, &["Transforms", "DigestMethod", "DigestValue"])?;
        let [enveloped, canonical] = children(transforms, &["Transform", "Transform"])?;
        for (element, name, expected) in [
            (canonicalization, "Algorithm", C14N_11),
            (method, "Algorithm", ECDSA_SHA384),
            (reference, "URI", ""),
            (enveloped, "Algorithm", ENVELOPED),
            (canonical, "Algorithm", C14N_11),
            (digest_method, "Algorithm", SHA384),
        ] {
            only(element, &[(name, expected)])?;
        }
        let [data] = children(key_info, &["X509Data"])?;
        for element in [info, value, key_info, transforms, digest, data] {
            only(element, &[])?;
        }
        only(signature, &[("xmlns:ds", XMLDSIG)])?;
        let certificates = data.elements_only().ok_or(RimError::Form { field: "certificates" })?;
        let mut chain = Vec::new();
        for certificate in certificates {
            only(certificate, &[])?;
            if certificate.name != "ds:X509Certificate" {
                return Err(RimError::Form { field: "certificates" });
            }
            chain.extend(binary(certificate, "certificates")?);
        }
        let (digest, signature) =
            (binary(digest, "DigestValue")?, binary(value, "SignatureValue")?);
        Ok(Self { info, digest, signature, chain })
    }
}

/// The children, which are these, in this order. No space stands between them: what is outside of
/// SignedInfo is not signed, so it has to have one spelling.
fn children<'a, const N: usize>(
    element: &'a Element<'a>,
    names: &[&'static str; N],
) -> Result<[&'a Element<'a>; N], RimError> {
    let field = names.first().copied().unwrap_or_default();
    let found = element.elements_only().ok_or(RimError::Form { field })?;
    let found: [_; N] = found.try_into().map_err(|_| RimError::Form { field })?;
    for (element, name) in found.iter().zip(names) {
        if element.name.strip_prefix("ds:") != Some(name) {
            return Err(RimError::Form { field: name });
        }
    }
    Ok(found)
}

/// The element has these attributes and no others.
fn only(element: &Element<'_>, expected: &[(&'static str, &str)]) -> Result<(), RimError> {
    if element.attributes == expected {
        return Ok(());
    }
    Err(RimError::Form { field: expected.first().map_or("attributes", |(name, _)| name) })
}

/// Base64, in lines that each end.
fn binary(element: &Element<'_>, field: &'static str) -> Result<Vec<u8>, RimError> {
    let text = element.text().ok_or(RimError::Form { field })?;
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n').rev();
    let last = lines.next().unwrap_or_default();
    // A single line is as long as it is; several are of 64.
    if last.is_empty() || lines.any(|line| line.len() != LINE_LEN) {
        return Err(RimError::Form { field });
    }
    base64(text.bytes().filter(|byte| *byte != b'\n')).ok_or(RimError::Form { field })
}

/// What the manifest is for.
fn meta_of(
    root: &Element<'_>,
    entity: &Element<'_>,
    meta: &Element<'_>,
) -> Result<(DeviceKind, String, String), RimError> {
    let get = |element: &Element<'_>, field| {
        let value = element.attribute(field).filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or(RimError::Form { field })
    };
    for (element, field, expected) in [
        (entity, "name", "NVIDIA Corporation"),
        (entity, "role", "softwareCreator tagCreator"),
        (root, "corpus", "false"),
        (root, "patch", "false"),
        (root, "supplemental", "false"),
        (meta, "PayloadType", "direct"),
        (meta, "xmlns:ns1", RIM_MODEL),
        (meta, "ns1:BindingSpec", "RIMIM"),
        (meta, "ns1:PlatformManufacturerId", "5703"),
    ] {
        if element.attribute(field) != Some(expected) {
            return Err(RimError::Form { field });
        }
    }
    for (element, field) in [(entity, "ns0:Entity"), (meta, "ns0:Meta")] {
        if !element.children.is_empty() {
            return Err(RimError::Form { field });
        }
    }
    let kind = match meta.attribute("edition") {
        Some("GPU") => DeviceKind::Gpu,
        Some("SWITCH") => DeviceKind::Switch,
        _ => return Err(RimError::Form { field: "edition" }),
    };
    let product = get(meta, "product")?;
    if get(root, "name")? != product {
        return Err(RimError::Form { field: "name" });
    }
    Ok((kind, product, get(meta, "colloquialVersion")?))
}

/// The active measurements. Indices count up from 0.
fn golden(payload: &Element<'_>) -> Result<BTreeMap<usize, Vec<[u8; 48]>>, RimError> {
    let form = || RimError::Form { field: "measurements" };
    let mut golden = BTreeMap::new();
    for (index, resource) in payload.elements().ok_or_else(form)?.into_iter().enumerate() {
        let is = |name: &str, expected: &str| resource.attribute(name) == Some(expected);
        let digests: Vec<[u8; 48]> = (0_usize..)
            .map_while(|i| resource.attribute(&format!("ns2:Hash{i}")))
            .map(digest)
            .collect::<Option<_>>()
            .ok_or_else(form)?;
        // type, index, active, alternatives, name and size, beside the digests.
        let whole = resource.name == "ns0:Resource"
            && is("type", "Measurement")
            && is("index", &index.to_string())
            && is("size", "48")
            && is("alternatives", &digests.len().to_string())
            && !digests.is_empty()
            && resource.attributes.len() == digests.len().saturating_add(6)
            && resource.children.is_empty();
        match resource.attribute("active") {
            Some("True") if whole => {
                golden.insert(index, digests);
            }
            Some("False") if whole => {}
            _ => return Err(form()),
        }
    }
    // A manifest that expects nothing would match everything.
    if golden.is_empty() { Err(form()) } else { Ok(golden) }
}

/// 48 bytes in lower-case hexadecimal.
fn digest(text: &str) -> Option<[u8; 48]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'f' => char::from(byte).to_digit(16),
        _ => None,
    };
    let bytes =
        pairs.iter().map(|[high, low]| u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

const LINE_LEN: usize = 64;
/// Index of the measurement of the first video decoder's firmware.
const NVDEC0_INDEX: usize = 35;
const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const XMLENC_SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const XMLDSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const C14N_11: &str = "http://www.w3.org/2006/12/xml-c14n11";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
const RIM_MODEL: &str = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_has_each_of_its_parts_and_nothing_in_it() {
        let hash = format!(" ns2:Hash0=\"{}\"", "0".repeat(96));
        let one = format!(
            "<p><ns0:Resource type=\"Measurement\" index=\"0\" active=\"True\" alternatives=\"1\"{hash} \
             name=\"m\" size=\"48\"/></p>"
        );
        let read = |text: &str| golden(&xml::parse(text).expect("the subset"));
        assert_eq!(read(&one).map(|golden| golden.len()), Ok(1));
        let without = one.replace(&hash, "").replace("alternatives=\"1\"", "alternatives=\"0\"");
        let within = one.replace("/></p>", ">\n</ns0:Resource></p>");
        for text in [without, within] {
            assert_eq!(read(&text), Err(RimError::Form { field: "measurements" }), "{text}");
        }
    }

    #[test]
    fn nothing_stands_in_what_says_what_a_manifest_is_for() {
        let root = "<s corpus=\"false\" patch=\"false\" supplemental=\"false\" name=\"GH100\"/>";
        let entity = "<e name=\"NVIDIA Corporation\" role=\"softwareCreator tagCreator\"/>";
        let meta = format!(
            "<m xmlns:ns1=\"{RIM_MODEL}\" colloquialVersion=\"1\" edition=\"GPU\" product=\"GH100\" \
             PayloadType=\"direct\" ns1:BindingSpec=\"RIMIM\" ns1:PlatformManufacturerId=\"5703\"/>"
        );
        let read = |entity: &str, meta: &str| {
            let [root, entity, meta] =
                [root, entity, meta].map(|text| xml::parse(text).expect("the subset"));
            meta_of(&root, &entity, &meta)
        };
        let is = (DeviceKind::Gpu, "GH100".to_owned(), "1".to_owned());
        assert_eq!(read(entity, &meta), Ok(is));
        let filled = entity.replace("/>", ">x</e>");
        assert_eq!(read(&filled, &meta), Err(RimError::Form { field: "ns0:Entity" }));
        let filled = meta.replace("/>", ">x</m>");
        assert_eq!(read(entity, &filled), Err(RimError::Form { field: "ns0:Meta" }));
    }
}
