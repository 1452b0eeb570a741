//! The published packages: made again bit for bit, and judged from their files alone.
//!
//! A vector is `name = value` lines; a line that starts with two spaces continues the value above,
//! `#` starts a comment. `expect` is `accept` or the name of the check that refuses. Data is hex.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use chrysalis_protocol::package::{Package, PackageError, PackageKey};
use chrysalis_protocol::secret::Secret;

use crate::support::{Blobs, Made, Recipe, name_of};

struct Case {
    name: &'static str,
    about: &'static str,
    expect: &'static str,
    made: Made,
}

fn cases() -> Vec<Case> {
    let case = |name, about, expect, made| Case { name, about, expect, made };
    let sealed = || Recipe::tiny(true).make();
    let edited = |edit: fn(&mut Made)| {
        let mut made = Recipe::tiny(true).make();
        edit(&mut made);
        made
    };
    vec![
        case("open", "An open package of three tensors.", "accept", Recipe::tiny(false).make()),
        case("sealed", "The same model, sealed.", "accept", sealed()),
        case(
            "wrong_key",
            "The sealed package with a key that it does not commit to.",
            "WrongKey",
            edited(|made| made.key = Some(crate::support::key(0x23))),
        ),
        case(
            "no_key",
            "The sealed package without a key.",
            "KeyMissing",
            edited(|made| made.key = None),
        ),
        case(
            "extended",
            "The sealed package with one zero byte behind the table.",
            "FileLen",
            edited(|made| made.file.push(0)),
        ),
        case(
            "svn_raised",
            "The sealed package with a higher security version and the old signature.",
            "Signature",
            edited(|made| made.file[59] = 4),
        ),
        case(
            "segment_flipped",
            "The sealed package with one bit of its data flipped.",
            "SegmentSeal",
            edited(|made| made.blobs.0[0][100] ^= 0x10),
        ),
        case("replaced", "The open package with one bit of its data flipped.", "SegmentHash", {
            let mut made = Recipe::tiny(false).make();
            made.blobs.0[0][100] ^= 0x10;
            made
        }),
    ]
}

#[test]
fn vectors_are_made_again_bit_for_bit() {
    for case in cases() {
        let path = folder().join(format!("package_{}.txt", case.name));
        let text = render(&case);
        if std::env::var_os("CHRYSALIS_WRITE_VECTORS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap();
        assert!(published == text, "{} differs", path.display());
    }
}

#[test]
fn every_vector_is_judged_as_it_says() {
    let mut judged = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("package_") {
            continue;
        }
        let vector = parse(&std::fs::read_to_string(&path).unwrap());
        let verdict = match judge(&vector) {
            Ok(()) => "accept".to_owned(),
            Err(error) => name_of(&error),
        };
        assert_eq!(verdict, vector["expect"], "{name}");
        judged += 1;
    }
    assert!(judged >= cases().len());
}

/// Opens and loads the package, and compares everything that the vector states about it.
fn judge(vector: &BTreeMap<String, String>) -> Result<(), PackageError> {
    let mk = hex::<32>(&vector["key"]).map(|mk| PackageKey::new(Secret::from(mk)));
    let package = Package::open(&bytes(&vector["file"]), mk.as_ref())?;
    assert_eq!(hex::<48>(&vector["content_digest"]), Some(package.public().content_digest()));
    assert_eq!(hex::<48>(&vector["package_digest"]), Some(package.public().package_digest()));
    assert_eq!(bytes(&vector["meta"]), package.meta().to_bytes().unwrap());
    let mut data = vec![0; package.public().header().data_len as usize];
    let mut source = Blobs(vec![bytes(&vector["blob_0"])]);
    package.read_segments(&mut source, |tensor, offset, bytes| -> Result<(), PackageError> {
        let start = (package.meta().tensors[tensor].offset + offset) as usize;
        data[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    })?;
    assert_eq!(bytes(&vector["data"]), data);
    Ok(())
}

fn render(case: &Case) -> String {
    let made = &case.made;
    let mut text = format!(
        "# {}\n# docs/formats.md, section 2. Publisher's Ed25519 seed: 32 bytes 0x11.\nexpect = {}\n",
        case.about, case.expect
    );
    let key = made.key.as_ref().map_or(&[][..], |key| key.expose());
    field(&mut text, "key", key);
    field(&mut text, "package_id", &made.public.header().package_id);
    field(&mut text, "content_digest", &made.public.content_digest());
    field(&mut text, "package_digest", &made.public.package_digest());
    field(&mut text, "meta", &made.meta.to_bytes().unwrap());
    field(&mut text, "data", &made.data());
    field(&mut text, "file", &made.file);
    field(&mut text, "blob_0", &made.blobs.0[0]);
    text
}

fn field(text: &mut String, name: &str, value: &[u8]) {
    write!(text, "{name} =").unwrap();
    for (row, bytes) in value.chunks(48).enumerate() {
        text.push_str(if row == 0 { " " } else { "\n  " });
        for byte in bytes {
            write!(text, "{byte:02x}").unwrap();
        }
    }
    text.push('\n');
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(more) = line.strip_prefix("  ") {
            fields.entry(last.clone()).or_insert_with(String::new).push_str(more);
        } else {
            let (name, value) = line.split_once('=').expect("a line is `name = value`");
            last = name.trim().to_owned();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    fields
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Nothing for an empty value.
fn hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    (!hex.is_empty()).then(|| bytes(hex).try_into().unwrap())
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}
