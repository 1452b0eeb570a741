//! What can be wrong with receipts (docs/receipts.md, "Rules"), each under a name that never changes.

use thiserror::Error;

use crate::receipt::{RECEIPT_LEN, ReceiptError};
use crate::statement::Kind;

/// Why a statement cannot be used to judge receipts.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum LedgerError {
    /// Only serve statements name what receipts are about.
    #[error("the statement is of kind {found:?}, not of kind Serve")]
    Kind {
        /// Its kind.
        found: Kind,
    },
    /// The policy is not the one that the statement commits to.
    #[error("the serving policy is not the one of the statement")]
    Policy,
    /// Two statements of one boot do not fit together.
    #[error("two statements of boot {boot_id:02x?} differ in their {field}")]
    Contradiction {
        /// The boot.
        boot_id: [u8; 16],
        /// What differs and must not.
        field: &'static str,
    },
}

/// What is wrong with a receipt, or with its place among the others.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// Not a whole receipt.
    #[error("{len} bytes are no receipt: it has {RECEIPT_LEN}")]
    Cut {
        /// How many there are.
        len: usize,
    },
    /// No evidence is known of its boot.
    #[error("no evidence is given of its boot {boot_id:02x?}")]
    Boot {
        /// The boot that it names.
        boot_id: [u8; 16],
    },
    /// The boot's key did not sign these bytes.
    #[error("the boot's receipt key did not sign it: it is forged or was altered")]
    Forged,
    /// The boot's key signed it, and yet it is not well-formed.
    #[error("it is signed and malformed: {0}")]
    Malformed(ReceiptError),
    /// It names a statement that no evidence of its boot shows.
    #[error("no evidence is given of the statement that it names")]
    Statement,
    /// Its epoch is not its statement's.
    #[error("it names epoch {found}, its statement is of epoch {stated}")]
    Epoch {
        /// The receipt's.
        found: u32,
        /// The statement's.
        stated: u32,
    },
    /// It is about another model than the boot serves.
    #[error("it names another model than its boot serves")]
    Content,
    /// It rounds by another quantum than the boot's policy says.
    #[error("it rounds to {found} tokens, the boot's policy to {stated}")]
    Quantum {
        /// The receipt's.
        found: u32,
        /// The policy's.
        stated: u32,
    },
    /// The same receipt again.
    #[error("it is receipt {} of file {} again", .first.number, .first.file)]
    Repeated {
        /// Where it was first.
        first: Place,
    },
    /// Another receipt charges the same sealed request.
    #[error("receipt {} of file {} charges the same request already", .first.number, .first.file)]
    PaidTwice {
        /// The receipt that counts.
        first: Place,
    },
    /// It does not continue its stream's receipts.
    #[error("its {field} does not continue the stream's receipt before it")]
    Stream {
        /// What does not.
        field: &'static str,
    },
    /// Nobody escrowed for its payer tag: the host may have asked itself.
    #[error("nobody known owes it: its payer tag is on no list")]
    Payer,
    /// The receipt before it is missing.
    #[error("the receipt before it in its boot is missing")]
    Gap,
    /// It stands in its file after one that was signed later.
    #[error("it stands after receipt {} of its file, which was signed later", .after.number)]
    Order {
        /// The one that was signed later.
        after: Place,
    },
    /// Another receipt continues the chain at the same place: the boot signed twice.
    #[error("receipt {} of file {} has its place in the chain", .other.number, .other.file)]
    Fork {
        /// The other one.
        other: Place,
    },
}

impl Fault {
    /// A stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "receipt.cut",
            Self::Boot { .. } => "receipt.boot",
            Self::Forged => "receipt.forged",
            Self::Malformed(_) => "receipt.malformed",
            Self::Statement => "receipt.statement",
            Self::Epoch { .. } => "receipt.epoch",
            Self::Content => "receipt.content",
            Self::Quantum { .. } => "receipt.quantum",
            Self::Repeated { .. } => "receipt.repeated",
            Self::PaidTwice { .. } => "receipt.paid_twice",
            Self::Stream { .. } => "receipt.stream",
            Self::Payer => "receipt.payer",
            Self::Gap => "chain.gap",
            Self::Order { .. } => "chain.order",
            Self::Fork { .. } => "chain.fork",
        }
    }
}

/// Where a receipt stands, both counted from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file.
    pub file: usize,
    /// The receipt in its file.
    pub number: usize,
}
