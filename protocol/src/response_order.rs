//! Which response frame may follow which. Both ends keep the same account, so that the enclave
//! never seals what the client would refuse.

use zeroize::{Zeroize, Zeroizing};

use crate::hash::Sha256;
use crate::inner::{End, FinishReason, Inner};
use crate::response::ResponseError;

/// What has come so far, so far as it decides what may come next. Both ends keep it.
#[derive(Default)]
pub(crate) struct Order {
    pub(crate) num_tokens: u32,
    pub(crate) output_hash: Sha256,
    /// The last frame's tokens, whose log probabilities have not come.
    unlogged: Zeroizing<Vec<u32>>,
    accepted: bool,
    failed: bool,
    output: Option<OutputKind>,
    pub(crate) finished: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum OutputKind {
    Tokens,
    Text,
}

impl Order {
    /// Refuses a frame that cannot come here.
    pub(crate) fn check(
        &self,
        inner: &Inner,
        stated: u32,
        last: bool,
    ) -> Result<(), ResponseError> {
        if self.finished {
            return Err(ResponseError::AfterFinal);
        }
        if last != matches!(inner, Inner::End(_)) {
            return Err(ResponseError::FinalFrame { last });
        }
        let counted = self.num_tokens.saturating_add(inner.num_tokens());
        if stated != counted {
            return Err(ResponseError::TokenCount { stated, counted });
        }
        match inner {
            Inner::Dummy | Inner::Error(_) => Ok(()),
            Inner::Accept(_) if self.accepted || self.failed => Err(ResponseError::AcceptOrder),
            Inner::Accept(_) => Ok(()),
            Inner::End(end) => self.check_end(end),
            _ if self.failed => Err(ResponseError::AfterError),
            _ if !self.accepted => Err(ResponseError::AcceptOrder),
            Inner::Progress { .. } => Ok(()),
            Inner::Tokens(_) if self.output == Some(OutputKind::Text) => {
                Err(ResponseError::MixedOutput)
            }
            Inner::Text { .. } if self.output == Some(OutputKind::Tokens) => {
                Err(ResponseError::MixedOutput)
            }
            Inner::Tokens(_) | Inner::Text { .. } => Ok(()),
            Inner::Logprobs(entries) => {
                let ids = entries.iter().map(|entry| entry.token.0);
                let expected = self.unlogged.iter().copied().take(entries.len());
                if ids.eq(expected) { Ok(()) } else { Err(ResponseError::LogprobsTokens) }
            }
        }
    }

    /// What END has to repeat.
    fn check_end(&self, end: &End) -> Result<(), ResponseError> {
        let (stated, counted) = (end.output_tokens, self.num_tokens);
        if stated != counted {
            return Err(ResponseError::TokenCount { stated, counted });
        }
        let (cached, prompt) = (end.cached_tokens, end.prompt_tokens);
        if cached > prompt {
            return Err(ResponseError::CachedCount { cached, prompt });
        }
        if end.output_hash != self.output_hash.finish() {
            return Err(ResponseError::OutputHash);
        }
        if self.failed != (end.reason == FinishReason::Error) {
            return Err(ResponseError::AfterError);
        }
        Ok(())
    }

    /// Takes note of a frame that was checked.
    pub(crate) fn follow(&mut self, inner: &Inner, last: bool) {
        self.finished = last;
        self.num_tokens = self.num_tokens.saturating_add(inner.num_tokens());
        match inner {
            Inner::Accept(_) => self.accepted = true,
            Inner::Error(_) => self.failed = true,
            Inner::Tokens(ids) => {
                self.output = Some(OutputKind::Tokens);
                ids.iter().for_each(|id| self.output_hash.update(&id.to_be_bytes()));
                self.unlogged.zeroize();
                self.unlogged.extend_from_slice(ids);
            }
            Inner::Text { text, .. } => {
                self.output = Some(OutputKind::Text);
                self.output_hash.update(text.as_bytes());
            }
            Inner::Logprobs(entries) => {
                let logged = entries.len().min(self.unlogged.len());
                self.unlogged.drain(..logged);
            }
            _ => {}
        }
    }
}
