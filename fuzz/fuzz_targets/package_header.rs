//! A package file from a hostile host: header, signature block, and all that opening checks.
#![no_main]

use chrysalis_protocol::package::{Header, Package, PublicHeader, SignatureBlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk()
        && let Ok(parsed) = Header::from_bytes(header)
    {
        assert_eq!(parsed.to_bytes(), *header, "a header has one encoding");
        assert_eq!(parsed.place(parsed.segment_count()), None);
        let last = parsed
            .place(parsed.segment_count() - 1)
            .map(|place| u64::from(place.blob));
        assert_eq!(
            last,
            Some(parsed.blob_count() - 1),
            "the last segment is in the last blob"
        );
    }
    if let Some(block) = bytes.last_chunk()
        && let Ok(parsed) = SignatureBlock::from_bytes(block)
    {
        assert_eq!(
            parsed.to_bytes(),
            *block,
            "a signature block has one encoding"
        );
    }
    if let Ok(package) = Package::open(bytes, None) {
        assert_eq!(
            PublicHeader::parse(bytes).as_ref().ok(),
            Some(package.public())
        );
    }
});
