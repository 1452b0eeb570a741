//! The bodies of frames: the first byte chooses the message, the others are its body.
#![no_main]

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::{
    Accept, Assembler, BlobReq, BlobResp, ClientBundleReq, Close, Credit, EvidenceReq, Hello,
    KeyrelReq, KeyrelResp, Limits, Open, Piece, Status,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, body)) = bytes.split_first() else {
        return;
    };
    let Ok(kind) = FrameKind::try_from(kind) else {
        return;
    };
    let written = match kind {
        FrameKind::Hello => Hello::from_bytes(body).map(Hello::to_bytes),
        FrameKind::HelloAck => Limits::from_bytes(body).map(Limits::to_bytes),
        FrameKind::EvidenceReq => EvidenceReq::from_bytes(body).map(EvidenceReq::to_bytes),
        FrameKind::ClientBundleReq => {
            ClientBundleReq::from_bytes(body).map(ClientBundleReq::to_bytes)
        }
        FrameKind::Open => Open::from_bytes(body).map(|open| open.to_bytes()),
        FrameKind::Accept => Accept::from_bytes(body).map(Accept::to_bytes),
        FrameKind::HostCredit | FrameKind::EnclaveCredit => {
            Credit::from_bytes(body).map(Credit::to_bytes)
        }
        FrameKind::Close => Close::from_bytes(body).map(Close::to_bytes),
        FrameKind::BlobReq => BlobReq::from_bytes(body).map(BlobReq::to_bytes),
        FrameKind::BlobResp => BlobResp::from_bytes(body).map(|range| range.to_bytes()),
        FrameKind::KeyrelReq => KeyrelReq::from_bytes(body).map(KeyrelReq::to_bytes),
        FrameKind::KeyrelResp => KeyrelResp::from_bytes(body).map(|sealed| sealed.to_bytes()),
        FrameKind::Status => Status::from_bytes(body).map(|status| status.to_bytes()),
        FrameKind::Evidence | FrameKind::ClientBundle => {
            let piece = Piece::from_bytes(body);
            if let Ok(piece) = &piece {
                let _ = Assembler::new(1 << 20).push(piece);
            }
            piece.map(|piece| piece.to_bytes())
        }
        _ => return,
    };
    if let Ok(written) = written {
        assert_eq!(written, body);
    }
});
