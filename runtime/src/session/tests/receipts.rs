//! The receipt chain over everything that can happen to a stream.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::receipt::{Chain, ReceiptError, payer_tag};
use chrysalis_protocol::request::HEAD_LEN;

use super::harness::{BOOT, Host, body};
use crate::engine::FinishReason;

#[test]
fn receipts_of_all_streams_form_one_chain_whatever_became_of_them() {
    let mut host = Host::new("epoch_max_seconds = 10");
    let mut tags = Vec::new();
    let mut running = Vec::new();
    for stream in 1..=60_u64 {
        let id = (stream % 5, stream);
        let mut request = body(&vec![5; stream as usize * 3], 10);
        if stream % 3 == 0 {
            request.options.voucher = Some(vec![stream as u8].into());
        }
        if stream % 7 == 0 {
            request.options.grammar = Some(b"no".to_vec().into());
        }
        let (context, sequence) = host.ask(id, &request);
        tags.push((context.request_tag(), stream));
        running.push((id, context, sequence));
        if stream % 4 == 0 {
            let (id, _, sequence) = &running[running.len() / 2];
            match sequence {
                Some(sequence) => host.finish(*sequence, FinishReason::Stop),
                None => host.frame(*id, FrameKind::Cancel, &[]),
            }
        }
        for (id, ..) in &running {
            host.grant(*id, 64);
        }
        host.pass(700);
        // Told here, so that `ask` finds nothing but what it added.
        drop(host.commands());
    }
    for (number, (id, _, sequence)) in running.iter().enumerate() {
        match (number % 3, sequence) {
            (0, _) => host.frame(*id, FrameKind::Cancel, &[]),
            (1, Some(sequence)) => {
                host.tokens(*sequence, &[1, 2, 3]);
                host.finish(*sequence, FinishReason::Length);
            }
            (_, Some(sequence)) => host.finish(*sequence, FinishReason::Error),
            (_, None) => {}
        }
        host.grant(*id, 64);
    }
    host.pass(10_000);
    host.assert_empty();

    let mut chain = Chain::new(host.receipt_key, BOOT);
    let mut seen = Vec::new();
    for bytes in &host.receipts {
        let receipt = chain.verify_next(bytes).unwrap();
        let (_, stream) = tags.iter().find(|(tag, _)| *tag == receipt.request_tag).unwrap();
        assert!(
            receipt.last
                && receipt.prompt_units.is_multiple_of(64)
                && receipt.output_units.is_multiple_of(64)
        );
        let refused = stream % 7 == 0;
        let voucher = if stream % 3 == 0 { vec![*stream as u8] } else { Vec::new() };
        assert_eq!(receipt.payer_tag, payer_tag(&voucher));
        // No request here fails after its first token.
        assert_eq!(receipt.prompt_units == 0, receipt.failed);
        assert!(!refused || receipt.failed);
        seen.push(*stream);
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=60).collect::<Vec<_>>());
    for (id, context, _) in running {
        assert!(host.hear(id, context).end.is_ok());
    }
}

#[test]
fn a_receipt_that_is_left_out_shows_in_the_chain() {
    let mut host = Host::new("pad_profile = 0");
    for stream in 1..=3 {
        let (_, sequence) = host.ask((1, stream), &body(&[5], 10));
        host.finish(sequence.unwrap(), FinishReason::Stop);
    }
    let mut chain = Chain::new(host.receipt_key, BOOT);
    chain.verify_next(&host.receipts[0]).unwrap();
    assert_eq!(chain.verify_next(&host.receipts[2]), Err(ReceiptError::Chain));
}

#[test]
fn a_request_that_never_opened_has_no_receipt() {
    let mut host = Host::new("");
    let mut sealed = host.seal(&body(&[5], 10)).bytes;
    sealed[HEAD_LEN + 100] ^= 1;
    host.submit((1, 1), &sealed);
    host.pass(5_000);
    assert!(host.receipts.is_empty());
}
