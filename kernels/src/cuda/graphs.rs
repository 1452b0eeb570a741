//! Steps of decode size as graphs: recorded once for a bucket, then started whole. A graph is made for as many tokens and as
//! far a position as its bucket has; kernels read the number of tokens from memory, and rows behind it come to nothing.

use std::fmt;

use super::device::Cuda;
use super::driver::Driver;
use super::spans::SPAN;
use super::step::Step;
use crate::batch::Batch;
use crate::device::{DeviceError, Rows};

/// The steps that one graph serves: every sequence takes one token and wants its logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The most tokens.
    pub(super) tokens: usize,
    /// The last position.
    pub(super) reach: u32,
}

impl Bucket {
    /// That of a batch whose last position is `last`; none where it is no step of decode size.
    pub(super) fn of(batch: &Batch, last: u32) -> Option<Self> {
        let tokens = batch.num_tokens();
        let each = tokens == batch.num_sequences() && tokens == batch.logit_rows.len();
        let spans = (last as usize / SPAN + 1).next_power_of_two();
        let reach = u32::try_from(spans * SPAN - 1).ok()?;
        let bucket = Self { tokens: bucket_of(tokens), reach };
        (each && (1..=TOKENS_MAX).contains(&tokens)).then_some(bucket)
    }
}

/// 1, 2, 4, and the multiples of 8.
pub(super) fn bucket_of(tokens: usize) -> usize {
    if tokens <= 4 { tokens.next_power_of_two() } else { tokens.next_multiple_of(8) }
}

/// The graphs of a step's memory, the one used last at the end.
pub(super) struct Graphs<D: Driver> {
    made: Vec<(Key, D::Graph)>,
    recording: Option<Key>,
}

/// What a graph was made for, and the state of the driver's memory that its addresses are of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    bucket: Bucket,
    rows: Rows,
    given_back: u64,
}

impl<D: Driver> Graphs<D> {
    /// The graph of this key. Those of another state of the memory are dropped on the way.
    fn find(&mut self, key: Key) -> Option<&D::Graph> {
        self.made.retain(|(other, _)| other.given_back == key.given_back);
        let at = self.made.iter().position(|(other, _)| *other == key)?;
        let found = self.made.remove(at);
        self.made.push(found);
        self.made.last().map(|(_, graph)| graph)
    }

    /// Whether what is asked for becomes part of a graph.
    pub(super) fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    fn keep(&mut self, key: Key, graph: D::Graph) {
        if self.made.len() == GRAPHS_MAX {
            self.made.remove(0);
        }
        self.made.push((key, graph));
    }
}

impl<D: Driver> Cuda<D> {
    pub(super) fn try_begin(
        &self,
        step: &mut Step<D>,
        rows: Rows,
        room: Rows,
    ) -> Result<Option<Rows>, DeviceError> {
        assert!(rows.tokens <= room.tokens && rows.logits <= room.logits, "{rows:?} of {room:?}");
        let Some(bucket) = step.bucket else {
            return Ok(Some(rows));
        };
        // What was asked for before is no part of the record.
        self.do_what_waits()?;
        if self.has_failed() {
            return Ok(Some(rows));
        }
        let rows =
            Rows { tokens: bucket.tokens.min(room.tokens), logits: bucket.tokens.min(room.logits) };
        if self.is_planning() {
            step.stretch(rows, bucket);
            return Ok(Some(rows));
        }
        let driver = self.driver();
        let key = Key { bucket, rows, given_back: driver.given_back() };
        if let Some(graph) = step.graphs.find(key) {
            self.replay(graph)?;
            return Ok(None);
        }
        driver.begin_record()?;
        step.graphs.recording = Some(key);
        step.stretch(rows, bucket);
        Ok(Some(rows))
    }

    pub(super) fn try_end(&self, step: &mut Step<D>) -> Result<(), DeviceError> {
        let Some(key) = step.graphs.recording.take() else {
            return self.do_what_waits();
        };
        let driver = self.driver();
        let added = self.do_what_waits();
        let graph = driver.end_record()?;
        added?;
        if self.has_failed() {
            return Ok(());
        }
        if driver.given_back() != key.given_back {
            // Something grew on the way, which planning should have prevented: the record has addresses of both.
            return Err(DeviceError::Failed("memory changed while a step was recorded".to_owned()));
        }
        self.replay(&graph)?;
        step.graphs.keep(key, graph);
        Ok(())
    }

    #[expect(unsafe_code, reason = "the one place where graphs are started")]
    fn replay(&self, graph: &D::Graph) -> Result<(), DeviceError> {
        // SAFETY: both callers have compared `given_back`.
        unsafe { self.driver().replay(graph) }
    }
}

/// Larger steps keep a card busy for longer than their launches take.
const TOKENS_MAX: usize = 256;
/// Of one step's memory; each takes some hundred KiB of the card and of the host.
const GRAPHS_MAX: usize = 64;

impl<D: Driver> Default for Graphs<D> {
    fn default() -> Self {
        Self { made: Vec::new(), recording: None }
    }
}

impl<D: Driver> fmt::Debug for Graphs<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graphs({})", self.made.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::WantLogits;

    #[test]
    fn only_steps_of_one_token_a_sequence_have_a_bucket() {
        let bucket = |chunks: &[(usize, u32, WantLogits)]| {
            let mut batch = Batch::default();
            for (tokens, start, want) in chunks {
                batch.push(&vec![7; *tokens], *start, &[], *want);
            }
            Bucket::of(&batch, batch.positions.iter().copied().max().unwrap_or(0))
        };
        let one = |position| (1, position, WantLogits::Last);
        assert_eq!(bucket(&[one(0)]), Some(Bucket { tokens: 1, reach: 255 }));
        assert_eq!(bucket(&[one(255), one(3)]), Some(Bucket { tokens: 2, reach: 255 }));
        assert_eq!(bucket(&[one(256); 3]), Some(Bucket { tokens: 4, reach: 511 }));
        assert_eq!(bucket(&[one(600); 17]), Some(Bucket { tokens: 24, reach: 1023 }));
        assert_eq!(bucket(&[one(5), (2, 0, WantLogits::Last)]), None);
        assert_eq!(bucket(&[one(5), (1, 0, WantLogits::None)]), None);
        assert_eq!(bucket(&[one(5); 257]), None);
        assert_eq!(bucket(&[]), None);
    }
}
