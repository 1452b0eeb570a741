//! The receipt chain of one boot.

use chrysalis_protocol::receipt::{self, RECEIPT_LEN, Receipt, ReceiptKey};

use crate::epoch::Identity;

/// Signs receipts, each over the hash of the one before.
#[expect(missing_debug_implementations, reason = "it holds the key")]
pub struct Receipts {
    key: ReceiptKey,
    previous: [u8; 32],
}

/// What a receipt says of its request, known when the request is taken.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    pub(super) epoch: u32,
    pub(super) statement_digest: [u8; 48],
    pub(super) serial: u64,
    pub(super) request_tag: [u8; 32],
    pub(super) payer_tag: [u8; 32],
}

/// How a request ended, as far as its receipt tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) cancelled: bool,
    pub(super) failed: bool,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

impl Receipts {
    /// An empty chain.
    pub fn new(key: ReceiptKey) -> Self {
        Self { key, previous: [0; 32] }
    }

    /// Signs the last receipt of a request and continues the chain with it.
    pub(super) fn sign(
        &mut self,
        identity: &Identity,
        meter: &Meter,
        usage: Usage,
    ) -> [u8; RECEIPT_LEN] {
        let quantum = identity.policy.billing_quantum;
        let receipt = Receipt {
            last: true,
            cancelled: usage.cancelled,
            failed: usage.failed,
            index: 0,
            epoch: meter.epoch,
            boot_id: identity.boot_id,
            serial: meter.serial,
            reasoning_units: 0,
            request_tag: meter.request_tag,
            payer_tag: meter.payer_tag,
            content_digest: identity.content_digest,
            statement_digest: meter.statement_digest,
            prompt_units: receipt::round_up(usage.prompt_tokens, quantum),
            output_units: receipt::round_up(usage.output_tokens, quantum),
            cached_units: 0,
            quantum: u32::from(quantum),
            previous: self.previous,
        }
        .sign(&self.key);
        self.previous = receipt::hash(&receipt);
        receipt
    }
}
