//! An answer on its way: opened frame by frame, and whole only with its final frame.

use std::collections::VecDeque;

use chrysalis_protocol::ack::{ACK_LEN, AckSealer};
use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::{Close, CloseCode, Credit};
use chrysalis_protocol::receipt::{self, Receipt};
use chrysalis_protocol::request::RequestContext;
use chrysalis_protocol::response::{
    End, ErrorCode, FinishReason, Inner, OpenedFrame, ResponseOpener, TOKENS_MAX, TokenLogprobs,
};
use zeroize::Zeroizing;

use crate::error::ClientError;
use crate::wire::Wire;

/// What came with one frame.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "part of a secret answer")]
pub enum Delta {
    /// The enclave has taken the request.
    Accepted,
    /// The next tokens.
    Tokens(Zeroizing<Vec<u32>>),
    /// Log probabilities of the tokens before.
    Logprobs(Zeroizing<Vec<TokenLogprobs>>),
    /// How much of the prompt was read, of all.
    Progress(u32, u32),
}

/// A whole answer's end.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Reason and exact counts.
    pub end: End,
    /// The receipt, verified; its bytes are for the payer.
    pub receipt: Option<Receipt>,
    /// The receipt as it came.
    pub receipt_bytes: Vec<u8>,
}

/// An answer that is coming. It is whole only when [`Answer::finish`] says so.
#[expect(missing_debug_implementations, reason = "it holds the response's secret")]
pub struct Answer<'a> {
    wire: &'a mut Wire,
    stream: u64,
    opener: Option<ResponseOpener>,
    receipt_key: [u8; 32],
    request_tag: [u8; 32],
    acks: Option<Acks>,
    /// Frames after which the enclave waits for credit.
    window: u32,
    unacknowledged: u32,
    opened: VecDeque<OpenedFrame>,
    error: Option<ErrorCode>,
    receipt: Option<Vec<u8>>,
    closed: bool,
    cancelled: bool,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(
        wire: &'a mut Wire,
        stream: u64,
        window: u32,
        context: RequestContext,
        (receipt_key, ack_window): ([u8; 32], u32),
    ) -> Self {
        let request_tag = context.request_tag();
        let (opener, sealer) = context.into_parts();
        Self {
            wire,
            stream,
            request_tag,
            opener: Some(opener),
            acks: (ack_window > 0).then(|| Acks::new(sealer, ack_window)),
            receipt_key,
            window,
            unacknowledged: 0,
            opened: VecDeque::new(),
            error: None,
            receipt: None,
            closed: false,
            cancelled: false,
        }
    }

    /// The next piece of the answer; nothing after the last one.
    ///
    /// # Errors
    /// [`ClientError::Response`] for anything that is not authentic or out of order, [`ClientError::Answer`] for a sealed
    /// refusal, [`ClientError::Refused`] and [`ClientError::Closed`] for an answer that is not whole.
    pub fn next_delta(&mut self) -> Result<Option<Delta>, ClientError> {
        loop {
            while let Some(frame) = self.opened.pop_front() {
                match frame.inner {
                    Inner::Accept(_) => return Ok(Some(Delta::Accepted)),
                    Inner::Tokens(ids) => return Ok(Some(Delta::Tokens(ids))),
                    Inner::Logprobs(entries) => return Ok(Some(Delta::Logprobs(entries))),
                    Inner::Progress { done, total } => {
                        return Ok(Some(Delta::Progress(done, total)));
                    }
                    Inner::Error(code) => self.error = Some(code),
                    Inner::Dummy | Inner::Text { .. } | Inner::End(_) => {}
                }
            }
            if self.closed {
                // CLOSE is the host's word; that the answer is whole, only the final frame says.
                if let Some(cut) = self.opener.take_if(|opener| !opener.is_finished()) {
                    cut.finish()?;
                }
                return self.error.map_or(Ok(None), |code| Err(ClientError::Answer { code }));
            }
            self.receive()?;
        }
    }

    /// Gives the rest of the answer up; what was said so far is still counted and receipted.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn cancel(&mut self) -> Result<(), ClientError> {
        if !std::mem::replace(&mut self.cancelled, true) && !self.closed {
            self.wire.send(FrameKind::Cancel, self.stream, &[])?;
        }
        Ok(())
    }

    /// Reads to the end and proves that the answer is whole: the final frame came, the counts and the hash of all tokens
    /// fit, and the receipt is signed by this boot.
    ///
    /// # Errors
    /// As [`Answer::next_delta`]; [`ClientError::Receipt`] for a receipt that does not fit.
    pub fn finish(mut self) -> Result<Summary, ClientError> {
        while self.next_delta()?.is_some() {}
        let opener = self.opener.take().ok_or(ClientError::Closed)?;
        let end = opener.finish()?;
        let receipt_bytes = self.receipt.take().unwrap_or_default();
        // A receipt that END names cannot be left out.
        let receipt = if receipt_bytes.is_empty() && end.receipt_hash == [0; 32] {
            None
        } else {
            let receipt = Receipt::verify(&receipt_bytes, &self.receipt_key)?;
            let hash = receipt::hash(&receipt_bytes);
            match unlike(&receipt, &hash, &end, &self.request_tag) {
                Some(field) => return Err(ClientError::OtherReceipt { field }),
                None => Some(receipt),
            }
        };
        Ok(Summary { end, receipt, receipt_bytes })
    }

    fn receive(&mut self) -> Result<(), ClientError> {
        let received = self.wire.receive()?;
        if received.stream != self.stream {
            return Ok(());
        }
        match received.kind {
            FrameKind::EnclaveData => {
                let opener = self.opener.as_mut().ok_or(ClientError::Closed)?;
                let mut opened = Vec::new();
                opener.push(&received.body, &mut opened)?;
                let acks = self.acks.as_mut().filter(|_| !opener.is_finished());
                let ack = acks.map_or(Ok(None), |acks| acks.hear(&opened))?;
                self.opened.extend(opened);
                if let Some(ack) = ack {
                    self.tell(FrameKind::HostData, &ack)?;
                }
                self.acknowledge()
            }
            FrameKind::Receipt => {
                self.receipt = Some(received.body);
                Ok(())
            }
            FrameKind::Close => match Close::from_bytes(&received.body)?.code {
                CloseCode::Ok => {
                    self.closed = true;
                    Ok(())
                }
                code => Err(ClientError::Refused { code }),
            },
            FrameKind::Accept => Ok(()),
            found => Err(ClientError::Unexpected { found }),
        }
    }

    /// Grants credit for what was read, half a window at a time.
    fn acknowledge(&mut self) -> Result<(), ClientError> {
        self.unacknowledged += 1;
        if self.unacknowledged >= (self.window / 2).max(1) {
            let credit = Credit { frames: self.unacknowledged };
            self.unacknowledged = 0;
            return self.tell(FrameKind::HostCredit, &credit.to_bytes());
        }
        Ok(())
    }

    /// Sends what an enclave that has just ended need not hear; what it sent is still there to read.
    fn tell(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), ClientError> {
        match self.wire.send(kind, self.stream, body) {
            Err(ClientError::Closed) => Ok(()),
            sent => sent,
        }
    }
}

/// What a receipt says otherwise than the answer that it is for.
fn unlike(
    receipt: &Receipt,
    hash: &[u8; 32],
    end: &End,
    request_tag: &[u8; 32],
) -> Option<&'static str> {
    let quantum = u16::try_from(receipt.quantum).unwrap_or(u16::MAX);
    let units = |tokens| receipt::round_up(tokens, quantum);
    let fields = [
        ("hash", *hash == end.receipt_hash),
        ("request", receipt.request_tag == *request_tag),
        ("prompt units", receipt.prompt_units == units(end.prompt_tokens)),
        ("output units", receipt.output_units == units(end.output_tokens)),
        ("cached units", receipt.cached_units == units(end.cached_tokens)),
        ("end", receipt.last && receipt.failed == (end.reason == FinishReason::Error)),
        ("end", receipt.cancelled == (end.reason == FinishReason::Cancelled)),
    ];
    fields.into_iter().find(|&(_, same)| !same).map(|(field, _)| field)
}

/// Says what has come, where the enclave's policy has an ACK window: after the first frame, and after every few more,
/// whatever is in them, so that the host learns nothing by it.
struct Acks {
    sealer: AckSealer,
    every: u32,
    frames: u32,
    tokens: u32,
}

impl Acks {
    fn new(sealer: AckSealer, window: u32) -> Self {
        // Twice a window at the fastest.
        let frames = window / 2 / u32::try_from(TOKENS_MAX).unwrap_or(u32::MAX);
        Self { sealer, every: frames.clamp(1, ACK_EVERY_MAX), frames: 0, tokens: 0 }
    }

    /// Counts opened frames; an ACK when one is due.
    fn hear(&mut self, opened: &[OpenedFrame]) -> Result<Option<[u8; ACK_LEN]>, ClientError> {
        let mut due = false;
        for frame in opened {
            due |= self.frames.is_multiple_of(self.every);
            self.frames = self.frames.saturating_add(1);
            self.tokens = frame.cumulative_tokens;
        }
        if due { Ok(Some(self.sealer.seal(self.tokens)?)) } else { Ok(None) }
    }
}

impl Drop for Answer<'_> {
    /// An answer that nobody reads to its end is given up, so that the enclave does not go on with it.
    fn drop(&mut self) {
        // Where the connection broke, the enclave has noticed already.
        drop(self.cancel());
    }
}

/// Frames between two ACKs, where the window leaves the choice: 0.2 s of them.
const ACK_EVERY_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use chrysalis_protocol::frame;
    use chrysalis_protocol::hpke::KemKeyPair;
    use chrysalis_protocol::rand_core::UnwrapErr;
    use chrysalis_protocol::request::{self, Options, Prompt, RequestBody, SealTo};
    use chrysalis_protocol::response::ResponseError;
    use getrandom::SysRng;

    use super::*;
    use crate::address::Address;

    /// A host that says nothing but that the answer ended well.
    fn close_ok_at_once() -> Wire {
        let path = std::env::temp_dir().join(format!("chrysalis-client-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let wire = Wire::connect(&Address::Unix(path.clone())).unwrap();
        std::fs::remove_file(path).unwrap();
        let close = Close { code: CloseCode::Ok, retry_after_s: 0 };
        let mut bytes = Vec::new();
        frame::write(FrameKind::Close, 1, &close.to_bytes(), &mut bytes);
        listener.accept().unwrap().0.write_all(&bytes).unwrap();
        wire
    }

    #[test]
    fn a_close_without_a_final_frame_does_not_end_an_answer() {
        let mut rng = UnwrapErr(SysRng);
        let keys = KemKeyPair::generate(&mut rng);
        let sealing_key = keys.sealing_key();
        let to = SealTo { statement_digest: [1; 48], key_id: [2; 8], sealing_key };
        let body = RequestBody {
            stream: true,
            want_logprobs: false,
            max_output: 1,
            request_id: [0; 16],
            seed: 0,
            options: Options::default(),
            prompt: Prompt::tokens(vec![1]),
        };
        let context = request::seal(&to, &body, &mut rng).unwrap().context;
        let mut wire = close_ok_at_once();
        let mut answer = Answer::new(&mut wire, 1, 64, context, ([3; 32], 0));
        let cut = answer.next_delta();
        assert!(
            matches!(cut, Err(ClientError::Response(ResponseError::Truncated { frames: 0 }))),
            "an answer without a final frame looked whole"
        );
    }
}
