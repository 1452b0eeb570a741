//! The worked example of docs/receipts.md is a receipt, and says of itself what is so.

use std::fs;
use std::path::Path;

use chrysalis_protocol::receipt::{RECEIPT_LEN, Receipt, hash, payer_tag};

use crate::cases::to_hex;
use crate::support::{receipt, receipt_key};

#[test]
fn the_worked_example_is_the_receipt_of_the_vectors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/receipts.md");
    let page = fs::read_to_string(path).unwrap();
    let (_, example) = page.split_once("## Worked example").unwrap();
    let block = example.split("```").nth(1).unwrap();
    let signed = receipt(3, [5; 32]).sign(&receipt_key());
    let mut read = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let part = |from: usize, to: usize| to_hex(&signed[from..to]);
        let expected = match name.trim() {
            "receipt key" => to_hex(&receipt_key().public_key()),
            "payer_tag" => to_hex(&payer_tag(b"voucher")),
            "its SHA-256" => to_hex(&hash(&signed)),
            "signature" => part(256, RECEIPT_LEN),
            range => {
                let (from, to) = range.strip_prefix("bytes ").unwrap().split_once("..").unwrap();
                part(from.parse().unwrap(), to.parse().unwrap())
            }
        };
        assert_eq!(value, expected, "{name}");
        read.push(name.trim().to_owned());
    }
    assert_eq!(read.len(), 10, "{read:?}");
    let message = to_hex(&[b"chrysalis1 receipt\0".as_slice(), b"CHRY-RC1"].concat());
    assert!(example.contains(&message));

    let verified = Receipt::verify(&signed, &receipt_key().public_key()).unwrap();
    assert_eq!((verified.index, verified.epoch, verified.serial), (3, 7, 41));
    let units = (verified.prompt_units, verified.output_units, verified.cached_units);
    assert_eq!((units, verified.quantum), ((1_024, 256, 512), 64));
}
