//! Quotes recorded from real machines (vectors/tdx); see `CHRYSALIS_VECTORS` in
//! docs/howto-auditor.md.

use std::fs;
use std::path::Path;

use chrysalis_attestation::quote::{Quote, QuoteError, td_attributes};
use chrysalis_attestation::verifier::{
    INTEL_ROOT, TdxError, TdxPlatformDemand, VerifiedQuote, tdx_collateral_from_json, verify_tdx,
};
use chrysalis_protocol::tdx_collateral::TdxCollateral;

use crate::vectors::{flipped, pem, read, vectors};

/// 2025-07-01, inside the window of the first sample's collateral.
const JULY_2025: u64 = 1_751_328_000;
/// 2026-03-01, inside that of the outdated sample.
const MARCH_2026: u64 = 1_772_323_200;
/// 2026-04-01, inside that of what was fetched from the service.
const APRIL_2026: u64 = 1_775_001_600;
/// 2026-10-20, inside that of the TD 1.5 sample.
const OCTOBER_2026: u64 = 1_792_454_400;

/// Real servers are made of packages that can be added to, run SMT, and register their keys.
const SERVER: TdxPlatformDemand = TdxPlatformDemand {
    allow_sw_hardening_needed: false,
    allow_smt: true,
    allow_dynamic_platform: true,
    allow_cached_keys: true,
    minimum_tcb_evaluation: 0,
};

#[test]
fn quotes_are_good_at_the_time_inside_their_collateral_only() {
    let Some(folder) = vectors() else { return };
    for (name, now, body) in [("tdx_quote", JULY_2025, 4), ("tdx_quote_td15ex", OCTOBER_2026, 5)] {
        let (quote, collateral) = sample(&folder, name);
        let verified = verify(&quote, &collateral, now).expect(name);
        assert_eq!(verified.tcb_status(), "UpToDate");
        assert_eq!(Quote::parse(&quote).expect(name).version, body);
        assert_eq!(verified.report().td_attributes, td_attributes::SEPT_VE_DISABLE);
        for wrong in [now - 200 * 86_400, now + 200 * 86_400] {
            assert_eq!(code(verify(&quote, &collateral, wrong)), "tdx.time", "{name}");
        }
        let strict =
            verify_tdx(&quote, &collateral, INTEL_ROOT, now, &TdxPlatformDemand::default());
        println!("{name} on a machine as strict as can be: {}", code(strict));
    }
}

#[test]
fn an_outdated_platform_is_refused() {
    let Some(folder) = vectors() else { return };
    let (quote, collateral) = sample(&folder, "tdx_quote_outdated");
    let refused = verify(&quote, &collateral, MARCH_2026);
    assert!(matches!(refused, Err(TdxError::TcbStatus { .. })), "{refused:?}");
}

#[test]
fn collateral_of_another_platform_is_refused() {
    let Some(folder) = vectors() else { return };
    let (quote, _) = sample(&folder, "tdx_quote");
    let (_, collateral) = sample(&folder, "tdx_quote_outdated");
    assert_eq!(code(verify(&quote, &collateral, MARCH_2026)), "tdx.authenticity");
}

#[test]
fn an_enclaves_quote_is_no_tds() {
    let Some(folder) = vectors() else { return };
    let quote = read(&folder, "tdx/dcap-qvl-0.7.1-sample/sgx_quote");
    assert_eq!(Quote::parse(&quote).map(|_| ()), Err(QuoteError::Version { version: 3 }));
    let report = read(&folder, "tdx/gotdx_report.dat");
    assert!(Quote::parse(&report).is_err());
}

#[test]
fn layouts_of_all_recorded_quotes_are_read() {
    let Some(folder) = vectors() else { return };
    let mut quotes = Vec::new();
    for name in ["tdx_quote", "tdx_quote_outdated", "tdx_quote_td15ex"] {
        quotes.push(sample(&folder, name).0);
    }
    for name in [
        "attestationrs_tdx_quote_4.dat",
        "attestationrs_tdx_quote_5.dat",
        "gotdx_quote_v5_sample.dat",
    ] {
        quotes.push(read(&folder, &format!("tdx/{name}")));
    }
    for name in ["tdx-quote.hex", "quote-from-tappd.hex"] {
        let text = read(&folder, &format!("tdx/dcap-qvl-0.7.1-sample/{name}"));
        let text = String::from_utf8(text).expect(name);
        let padded = from_hex(text.trim().trim_start_matches("0x"));
        quotes.push(Quote::parse_padded(&padded).expect(name).bytes.to_vec());
    }
    for bytes in &quotes {
        let quote = Quote::parse(bytes).expect("a quote");
        assert_eq!(quote.report.mr_signer_seam, [0; 48]);
        for len in 0..bytes.len() {
            assert!(Quote::parse(&bytes[..len]).is_err(), "cut at {len}");
        }
    }
    // This file has text of a terminal behind its quote.
    let bytes = read(&folder, "tdx/gotdx_tdx_prod_quote_SPR_E4.dat");
    assert_eq!(Quote::parse(&bytes).map(|_| ()), Err(QuoteError::Trailing { extra: 39 }));
    assert!(Quote::parse_padded(&bytes).is_err());
    assert!(Quote::parse(&bytes[..bytes.len() - 39]).is_ok());
}

#[test]
fn quotes_with_collateral_of_their_platform_are_authentic() {
    let Some(folder) = vectors() else { return };
    let quotes = [
        ("attestationrs_tdx_quote_4.dat", "50806f000000", "tdx.tcb_status"),
        ("attestationrs_tdx_quote_5.dat", "90c06f000000", "tdx.tcb_status"),
        ("gotdx_quote_v5_sample.dat", "90c06f000000", "accepted"),
        ("gotdx_tdx_prod_quote_SPR_E4.dat", "50806f000000", "tdx.tcb_status"),
    ];
    for (name, fmspc, expected) in quotes {
        let mut quote = read(&folder, &format!("tdx/{name}"));
        if name.contains("SPR") {
            quote.truncate(quote.len() - 39);
        }
        let debugged =
            Quote::parse(&quote).expect(name).report.td_attributes & td_attributes::DEBUG;
        assert_eq!(debugged != 0, name.contains("quote_4"));
        // Patch levels are judged after every signature, so their refusal says that those are good.
        let collateral = service(&folder, fmspc);
        assert_eq!(code(verify(&quote, &collateral, APRIL_2026)), expected, "{name}");
        for bit in [60 * 8, (48 + 583) * 8, (48 + 584 + 4 + 80) * 8] {
            let altered = verify(&flipped(&quote, bit), &collateral, APRIL_2026);
            assert_eq!(code(altered), "tdx.authenticity", "{name}");
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_recorded_quote_is_refused() {
    let Some(folder) = vectors() else { return };
    let (quote, collateral) = sample(&folder, "tdx_quote");
    assert!(verify(&quote, &collateral, JULY_2025).is_ok());
    let mut count = 0;
    // The signed part, every bit; certificates, which take long, every 29th.
    let signed = (48 + 584 + 4 + 128) * 8;
    for bit in (0..signed).chain((signed..quote.len() * 8).step_by(29)) {
        assert!(verify(&flipped(&quote, bit), &collateral, JULY_2025).is_err(), "bit {bit}");
        count += 1;
    }
    for bit in (0..collateral.len() * 8).step_by(53) {
        assert!(verify(&quote, &flipped(&collateral, bit), JULY_2025).is_err(), "bit {bit}");
        count += 1;
    }
    for len in 0..quote.len() {
        assert!(verify(&quote[..len], &collateral, JULY_2025).is_err(), "cut at {len}");
        count += 1;
    }
    println!("{count} flipped bits and cuts of a recorded quote, none accepted");
}

fn verify(quote: &[u8], collateral: &[u8], now: u64) -> Result<VerifiedQuote, TdxError> {
    verify_tdx(quote, collateral, INTEL_ROOT, now, &SERVER)
}

fn code<T>(result: Result<T, TdxError>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "accepted")
}

/// A recorded quote without the zeros behind it, and its collateral as a section.
fn sample(folder: &Path, name: &str) -> (Vec<u8>, Vec<u8>) {
    let base = folder.join("tdx/dcap-qvl-0.7.1-sample");
    let quote = fs::read(base.join(name)).expect(name);
    let quote = Quote::parse_padded(&quote).expect(name).bytes.to_vec();
    let json = fs::read_to_string(base.join(format!("{name}_collateral.json"))).expect(name);
    let collateral = tdx_collateral_from_json(&json).expect(name);
    (quote, collateral.to_bytes())
}

/// Answers of Intel's service, as a section.
fn service(folder: &Path, fmspc: &str) -> Vec<u8> {
    let read = |name: &str| read(folder, &format!("tdx/attestationrs_collateral/{name}"));
    let text = |name: &str| String::from_utf8(read(name)).expect(name);
    let signer =
        |name: &str| pem(folder, &format!("tdx/attestationrs_collateral/{name}")).swap_remove(0);
    let (tcb_info, tcb_info_signature) = signed(&text(&format!("tcb_info_{fmspc}.json")));
    let (qe_identity, qe_identity_signature) = signed(&text("td_qe_identity.json"));
    let collateral = TdxCollateral {
        root_crl: read("root_ca_crl.der"),
        pck_crl: read("pck_crl_platform.der"),
        tcb_info_signer: signer("tcb_signing_chain.pem"),
        tcb_info,
        tcb_info_signature,
        qe_identity_signer: signer("qe_identity_signing_chain.pem"),
        qe_identity,
        qe_identity_signature,
    };
    collateral.to_bytes()
}

/// `{"name":TEXT,"signature":"HEX"}`: the text and the signature.
fn signed(answer: &str) -> (String, [u8; 64]) {
    let (head, signature) = answer.split_once(",\"signature\":\"").expect("it is signed");
    let (_, text) = head.split_once(':').expect("it has a name");
    (text.to_owned(), from_hex(&signature[..128]).try_into().expect("64 bytes"))
}

fn from_hex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}
