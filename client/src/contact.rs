//! How fresh evidence has to be: at the first contact with an enclave made over the client's own challenge, after that
//! as old as the sealing key's epoch.

use chrysalis_attestation::policy::{AppraisalPolicy, MaxAge, VerifiedEnclave};

use crate::connection::Connection;
use crate::error::ClientError;

/// Verifies enclaves by one policy, over any number of connections and epochs.
///
/// The policy's `max_age` is about the first contact. A boot that was proved fresh once is known by its receipt key,
/// which lives as long as it does: the evidence of its later epochs costs the platform no report.
#[derive(Clone, Debug)]
pub struct Contact {
    policy: AppraisalPolicy,
    known: Option<Boot>,
}

/// Names a boot.
type Boot = ([u8; 16], [u8; 32]);

impl Contact {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(policy: AppraisalPolicy) -> Self {
        Self { policy, known: None }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &AppraisalPolicy {
        &self.policy
    }

    /// Verifies the enclave at the other end: by its epoch's evidence where its boot is known, and as freshly as the
    /// policy says where it is another one.
    ///
    /// # Errors
    /// As [`Connection::verify`].
    pub fn verify(&mut self, connection: &mut Connection) -> Result<VerifiedEnclave, ClientError> {
        if self.known.is_some() {
            let by_epoch = AppraisalPolicy { max_age: MaxAge::Epoch, ..self.policy.clone() };
            let enclave = connection.verify(&by_epoch)?;
            if self.known == Some(boot(&enclave)) {
                return Ok(enclave);
            }
            self.known = None;
        }
        let enclave = connection.verify(&self.policy)?;
        self.known = Some(boot(&enclave));
        Ok(enclave)
    }
}

fn boot(enclave: &VerifiedEnclave) -> Boot {
    (enclave.statement().boot_id, enclave.receipt_key())
}
