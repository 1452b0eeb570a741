//! The choice of tokens (`cuda/sample.cu`, `cuda/sample_few.cu`). Draws and their edits travel with the step, and the tokens
//! come back from where the draws lie: no copy of their own, and one out.

use zeroize::Zeroizing;

use super::device::{Buffer, Cuda, count};
use super::driver::Driver;
use super::params::Sample;
use super::step::Step;
use crate::device::DeviceError;
use crate::sampling::{Draw, Draws};

/// What a step chooses, as the kernels want it: draws with both cuts first, then those with one, with none, greedy ones, and those
/// that keep few.
#[derive(Debug, Default)]
pub(super) struct Drawn {
    /// Which draw of the batch each record is.
    order: Vec<usize>,
    /// Records with both cuts; with at least one; that are drawn; all but those that keep few.
    ends: [usize; 4],
    most_edits: usize,
    num_edits: usize,
    /// Rows and tokens are below these.
    rows: usize,
    tokens: usize,
    /// Where the keys begin, in bytes of the step.
    start: usize,
}

impl Drawn {
    /// The order of some draws, which begin behind so many bytes.
    pub(super) fn of(draws: &Draws, behind: usize) -> Self {
        let kind = |draw: &Draw| {
            let cuts = u8::from(draw.top_k > 0) + u8::from(draw.part() < 1 << 32);
            match draw.top_k {
                _ if draw.temperature == 0.0 => 3,
                1..=FEW => 4,
                _ => 2 - cuts,
            }
        };
        let kinds: Vec<u8> = draws.iter().map(|(draw, _)| kind(draw)).collect();
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        order.sort_by_key(|i| kinds[*i]);
        Self {
            order,
            ends: [0, 1, 2, 3].map(|last| kinds.iter().filter(|kind| **kind <= last).count()),
            most_edits: draws.iter().map(|(_, edits)| edits.len()).max().unwrap_or(0),
            num_edits: draws.edits().len(),
            rows: draws.iter().map(|(draw, _)| draw.row as usize + 1).max().unwrap_or(0),
            tokens: draws.edits().iter().map(|edit| edit.token as usize + 1).max().unwrap_or(0),
            start: behind.next_multiple_of(16),
        }
    }

    /// Bytes of a step that has a draw for each of its tokens, and not many edits.
    pub(super) fn room(max_tokens: usize) -> usize {
        32 + (KEY + RECORD) * max_tokens + EDIT * EDITS
    }

    fn records(&self) -> usize {
        self.start + (KEY * self.order.len()).next_multiple_of(16)
    }

    fn edits(&self) -> usize {
        self.records() + RECORD * self.order.len()
    }

    /// Where they end, in bytes of the step.
    pub(super) fn end(&self) -> usize {
        self.edits() + EDIT * self.num_edits
    }

    /// Appends them: keys, which are zero, records (`sample.cuh`, `Draw`), and edits.
    pub(super) fn lay_out(&self, draws: &Draws, bytes: &mut Vec<u8>) {
        bytes.resize(self.records(), 0);
        let (mut all, mut first) = (Vec::with_capacity(draws.len()), 0);
        for (draw, edits) in draws.iter() {
            all.push((draw, first, edits.len() as u32));
            first += edits.len() as u32;
        }
        for (draw, first, edits) in self.order.iter().map(|i| all[*i]) {
            let words = [draw.row, draw.top_k, draw.scale().to_bits(), draw.min_p.to_bits()];
            bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
            bytes.extend([draw.part(), draw.bits()].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend([first, edits, 0, 0].into_iter().flat_map(u32::to_le_bytes));
        }
        for edit in draws.edits() {
            let numbers = [edit.bias, edit.repetition, edit.lowered].map(f32::to_bits);
            bytes.extend([edit.token].into_iter().chain(numbers).flat_map(u32::to_le_bytes));
        }
    }
}

impl<D: Driver> Cuda<D> {
    pub(super) fn try_sample(
        &self,
        step: &Step<D>,
        logits: &Buffer<D>,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError> {
        let (drawn, driver) = (&step.drawn, self.driver());
        assert_eq!(drawn.order.len(), out.len(), "a token for each draw");
        assert!(drawn.rows <= logits.rows, "rows of {}", logits.rows);
        assert!(drawn.tokens <= logits.cols, "edits of {} tokens", logits.cols);
        out.fill(None);
        self.do_what_waits()?;
        if out.is_empty() || logits.cols == 0 {
            return driver.finish();
        }
        self.enqueue_sample(step, logits)?;
        if self.is_planning() || self.has_failed() {
            return Ok(());
        }
        let mut keys = Zeroizing::new(vec![0; KEY * out.len()]);
        step.read(driver, drawn.start, &mut keys)?;
        for (place, key) in drawn.order.iter().zip(keys.as_chunks::<KEY>().0) {
            let key = u64::from_le_bytes(*key);
            out[*place] = if key == u64::MAX { None } else { Some(u32::MAX - key as u32) };
        }
        Ok(())
    }

    fn enqueue_sample(&self, step: &Step<D>, logits: &Buffer<D>) -> Result<(), DeviceError> {
        let (drawn, driver) = (&step.drawn, self.driver());
        let pieces = logits.cols.div_ceil(PIECE);
        assert!(pieces <= PIECES_MAX, "a vocabulary of {}", logits.cols);
        let draws = drawn.order.len();
        // A plan is for draws of every kind.
        let (planned, found) = (([draws; 4], 0), (drawn.ends, drawn.ends[3]));
        let ([both, cut, all_drawn, many], first_few) =
            if self.is_planning() { planned } else { found };
        let at_pieces = BINS * cut;
        let at_cuts = at_pieces + PIECE_SUM * pieces * all_drawn;
        let mut scratch = self.scratch();
        let work = scratch.at_least(driver, at_cuts + CUT * all_drawn)?;
        let begin = step.address(driver);
        let params = Sample {
            x: logits.address(driver),
            keys: begin + drawn.start as u64,
            draws: begin + drawn.records() as u64,
            edits: begin + drawn.edits() as u64,
            cuts: work + at_cuts as u64,
            bins: work,
            pieces: work + at_pieces as u64,
            cols: count(logits.cols),
            cut: count(cut),
            drawn: count(all_drawn),
            undo: 0,
        };
        let start = |kernel, across: usize, draws: usize, params: &Sample| {
            if across == 0 || draws == 0 {
                return Ok(());
            }
            self.launch(kernel, [count(across), count(draws), 1], 256, params)
        };
        let edits = drawn.most_edits.div_ceil(256);
        start("sample_edit", edits, draws, &params)?;
        start("sample_largest", pieces, many, &params)?;
        start("sample_bins", pieces, cut, &params)?;
        start("sample_near", pieces, cut, &params)?;
        start("sample_near", pieces, both, &params)?;
        start("sample_draw", pieces, all_drawn, &params)?;
        if first_few < draws {
            let few = Sample {
                keys: params.keys + (KEY * first_few) as u64,
                draws: params.draws + (RECORD * first_few) as u64,
                ..params
            };
            self.launch("sample_few", [count(draws - first_few), 1, 1], 1024, &few)?;
        }
        start("sample_edit", edits, draws, &Sample { undo: 1, ..params })
    }
}

/// The most tokens that draws of `sample_few` keep.
const FEW: u32 = 256;
/// Columns of a block, and the most blocks of a row.
const PIECE: usize = 4096;
const PIECES_MAX: usize = 256;
/// Bytes of `sample.cuh`'s structs.
const KEY: usize = 8;
const RECORD: usize = 48;
const EDIT: usize = 16;
const CUT: usize = 32;
const BINS: usize = 37_888;
const PIECE_SUM: usize = 16;
/// Edits of a step for which there is room from the beginning.
const EDITS: usize = 16_384;
