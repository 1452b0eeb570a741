//! TDX quotes and the collateral behind them: layouts, then the whole verifier.
#![no_main]

use chrysalis_attestation::quote::Quote;
use chrysalis_attestation::verifier::{
    INTEL_ROOT, TdxPlatformDemand, tdx_collateral_from_json, verify_tdx,
};
use chrysalis_protocol::tdx_collateral::TdxCollateral;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(collateral) = TdxCollateral::parse(bytes) {
        assert_eq!(collateral.to_bytes(), bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = tdx_collateral_from_json(text);
    }
    let Ok(quote) = Quote::parse_padded(bytes) else {
        return;
    };
    assert_eq!(Quote::parse(quote.bytes).as_ref(), Ok(&quote));
    // Nobody has the root's key: what parses is refused all the same.
    let collateral = TdxCollateral {
        root_crl: Vec::new(),
        pck_crl: Vec::new(),
        tcb_info_signer: Vec::new(),
        tcb_info: String::new(),
        tcb_info_signature: [0; 64],
        qe_identity_signer: Vec::new(),
        qe_identity: String::new(),
        qe_identity_signature: [0; 64],
    };
    let demand = TdxPlatformDemand::default();
    let verified = verify_tdx(quote.bytes, &collateral.to_bytes(), INTEL_ROOT, 0, &demand);
    assert!(verified.is_err());
});
