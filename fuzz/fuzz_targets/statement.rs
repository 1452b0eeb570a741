//! The fixed layouts: what is read is written back to the same bytes.
#![no_main]

use chrysalis_protocol::receipt::{Chain, Receipt};
use chrysalis_protocol::statement::{KeyConfig, ReportData, ServingPolicy, Statement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(statement) = Statement::from_bytes(bytes) {
        assert_eq!(statement.to_bytes(), bytes);
        let data = statement.report_data();
        assert_eq!(ReportData::from_bytes(&data.to_bytes()), Ok(data));
    }
    if let Ok(data) = ReportData::from_bytes(bytes) {
        assert_eq!(data.to_bytes(), bytes);
    }
    if let Ok(config) = KeyConfig::from_bytes(bytes) {
        assert_eq!(config.to_bytes(), bytes);
    }
    if let Ok(policy) = ServingPolicy::from_bytes(bytes) {
        assert_eq!(policy.to_bytes(), bytes);
    }
    assert!(Receipt::verify(bytes, &[1; 32]).is_err());
    assert!(Chain::new([1; 32], [0; 16]).verify_next(bytes).is_err());
});
