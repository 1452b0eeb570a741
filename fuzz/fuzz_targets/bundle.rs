//! Evidence bundles and what is in them.
#![no_main]

use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::freshness::Freshness;
use chrysalis_protocol::statement::{KeyConfig, ServingPolicy, Statement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(freshness) = Freshness::parse(bytes) {
        assert_eq!(freshness.to_bytes(), bytes);
    }
    let Ok(bundle) = Bundle::parse(bytes) else {
        return;
    };
    assert_eq!(bundle.to_bytes(), bytes);
    let _ = Statement::from_bytes(bundle.statement);
    let _ = KeyConfig::from_bytes(bundle.key_config);
    let _ = ServingPolicy::from_bytes(bundle.policy);
    if let Some(section) = bundle.freshness
        && let Ok(freshness) = Freshness::parse(section)
    {
        assert_eq!(freshness.to_bytes(), section);
    }
});
