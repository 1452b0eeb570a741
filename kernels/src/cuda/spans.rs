//! How the attention of a step is launched: which tokens share blocks, and whether each span of what they see has blocks of its
//! own. No bit depends on it (`attention.cu`).

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{AttentionParams, Heads, TokenAttention};
use super::products::CHUNK;
use super::residual::Attending;
use super::step::Step;
use crate::device::{Attention, CACHE_GROUP, CacheDtype, CacheShape, DeviceError};

/// Tokens of a step that one launch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: usize,
    end: usize,
    /// Whether tokens share blocks, as those of a prompt do.
    together: bool,
}

/// A kernel of `attention.cu` or `attention_f32.cu`, and how it divides a run.
struct Plan {
    kernel: String,
    threads: u32,
    /// Dynamic shared memory, beside the ring.
    shared: usize,
    /// What is there or on its way: bytes of K or V of some positions, and how many of them, at least.
    place: usize,
    ring: usize,
    /// Works, which are blocks where the kernel does not go from one to the next: of tokens, of heads.
    grid: [usize; 2],
    /// Blocks for each multiprocessor that keep it busy: where there are fewer, each span has its own.
    enough: usize,
    /// Whether the kernel is for a token at a time: it joins spans itself, goes from work to work, and may turn its heads.
    token: bool,
    /// Whether blocks have tokens of prompts.
    together: bool,
}

impl<D: Driver> Cuda<D> {
    pub(super) fn try_attention(
        &self,
        step: &Step<D>,
        args: &Attention<'_, Self>,
    ) -> Result<(), DeviceError> {
        let shape = args.cache.shape;
        let group = args.q.cols / shape.head_dim / shape.num_kv_heads;
        let num_heads = group * shape.num_kv_heads;
        assert_eq!(args.q.cols, num_heads * shape.head_dim, "heads of q in groups");
        assert_eq!(args.out.cols, args.q.cols, "width of attention");
        assert!(step.num_tokens <= args.q.rows.min(args.out.rows), "rows of attention");
        // One token a sequence, maybe as many as a graph is made for.
        let decode = [Run { first: 0, end: step.num_tokens, together: false }];
        let runs = match step.bucket {
            Some(_) => decode.to_vec(),
            None => runs(&step.lengths, shape.dtype != CacheDtype::F32),
        };
        // A plan has both kernels for a token at a time: steps may have fewer works than it, or more.
        let few_works: &[usize] = match self.is_planning() {
            true => &[usize::MAX, 0],
            false => &[2 * self.driver().multiprocessors()],
        };
        for run in runs {
            few_works.iter().try_for_each(|few| self.attend(step, args, group, run, *few))?;
        }
        Ok(())
    }

    fn attend(
        &self,
        step: &Step<D>,
        args: &Attention<'_, Self>,
        group: usize,
        run: Run,
        few_works: usize,
    ) -> Result<(), DeviceError> {
        let (driver, shape) = (self.driver(), args.cache.shape);
        let num_heads = group * shape.num_kv_heads;
        let max_spans = step.max_spans(SPAN, args.window);
        let mut plan = Plan::new(&shape, group, run, few_works, self.limits.wgmma);
        let (tokens, works) = (run.end - run.first, plan.grid.iter().product::<usize>());
        let of_token = size_of::<f32>() * num_heads * max_spans * (shape.head_dim + 2);
        let records = tokens * of_token;
        let split =
            max_spans > 1 && plan.leaves_idle(driver.multiprocessors()) && records <= RECORDS_MAX;
        // What the tokens of a block see may begin in one span more than what the last of them sees.
        let more = usize::from(run.together && args.window.is_some());
        let z = if split { max_spans + more } else { 1 };
        if plan.token {
            plan.fill(self.limits.shared, driver.multiprocessors(), z);
        }
        let (q, cache) = (args.q.address(driver), args.cache.layer(driver, args.layer));
        let waiting = plan.token.then(|| self.take_heads(q, &cache, tokens)).flatten();
        self.do_what_waits()?;
        let mut scratch = self.scratch();
        if self.is_planning() && max_spans > 1 {
            // Fewer tokens, or nearer ones, may be split where these are not.
            scratch.at_least(driver, records.min(RECORDS_MAX))?;
        }
        let params = AttentionParams {
            step: step.params(driver),
            cache,
            q,
            out: args.out.address(driver),
            records: if split { scratch.at_least(driver, records)? } else { 0 },
            tickets: if split { scratch.tickets(driver, works)? } else { 0 },
            num_heads: count(num_heads),
            window: args.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            max_spans: count(max_spans),
            first_token: count(run.first),
            end_token: count(run.end),
            scale: args.scale,
            softcap: args.softcap.unwrap_or(0.0),
            ring: count(plan.ring),
            turns: waiting.is_some().into(),
            group: count(group),
        };
        let grid = [count(plan.grid[0]), count(plan.grid[1]), count(z)];
        let shared = count(plan.shared + plan.ring * plan.place);
        if plan.token {
            let heads = waiting.unwrap_or(Heads::NONE);
            let params =
                TokenAttention { attention: params, heads, tiles: 0, tile_rows: 0, half: 0 };
            let attending =
                Attending { kernel: plan.kernel, grid, threads: plan.threads, shared, params };
            // Pairs of values of a head are neighbours in a tile, and no chunk ends with what is not there.
            let fits = shape.head_dim.is_multiple_of(2) && args.out.cols.is_multiple_of(CHUNK);
            return match step.graphs.is_recording() && !split && fits {
                true => self.wait_to_attend(attending),
                false => self.start_attention(&attending),
            };
        }
        self.launch_shared(&plan.kernel, grid, plan.threads, shared, &params)?;
        if !split {
            return Ok(());
        }
        self.launch("attention_join", [count(tokens), params.num_heads, 1], 256, &params)
    }
}

impl Plan {
    /// Works of a token at a time are for blocks of eight warps up to `few_works`, for such of four above.
    fn new(shape: &CacheShape, group: usize, run: Run, few_works: usize, wgmma: bool) -> Self {
        let (tokens, kv_heads) = (run.end - run.first, shape.num_kv_heads);
        let kind = match shape.dtype {
            CacheDtype::F32 => {
                return Self {
                    kernel: "attention_f32".to_owned(),
                    threads: 256,
                    shared: 0,
                    place: 0,
                    ring: 0,
                    grid: [tokens, kv_heads * group.div_ceil(F32_HEADS)],
                    enough: 4,
                    token: false,
                    together: false,
                };
            }
            CacheDtype::F16 => "f16",
            CacheDtype::Bf16 => "bf16",
            CacheDtype::I8 => "i8",
            CacheDtype::F8 => "f8",
        };
        let width = [64, 128].into_iter().find(|width| shape.head_dim <= *width).unwrap_or(256);
        let words = matches!(shape.dtype, CacheDtype::F16 | CacheDtype::Bf16);
        if run.together {
            let rows = Self::rows(kind, words, width, [tokens * group, kv_heads]);
            let whole = shape.head_dim.is_multiple_of(8) && shape.block_size.is_multiple_of(16);
            let fits = words && width <= 128 && whole;
            if wgmma && fits { rows.on_hopper(kind, width) } else { rows }
        } else {
            let grid = [tokens, kv_heads * group.div_ceil(TOKEN_ROWS)];
            let many = grid[0] * grid[1] > few_works && width <= 128;
            Self::token(kind, words, width, if many { 4 } else { 8 }, grid)
        }
    }

    /// `AttentionTile` of `attention_tile.cuh`, whose `BYTES` the emulator holds it to.
    fn rows(kind: &str, words: bool, width: usize, [rows, kv_heads]: [usize; 2]) -> Self {
        let (share, step) = if width > 128 { (2, 32) } else { (1, 64) };
        let (tiles, units, tile) = (ROWS_WARPS / share, step / 16, step * width * 2);
        // Weights, their sums and the largest scores, which the warps of a tile tell each other.
        let told = if share > 1 { tiles * units * (32 * 16 + 32 * 8 + 16 * 4) } else { 0 };
        // What lies aside: two of sixteen bytes for each thread, one for each warp.
        let aside = (2 * 32 + 1) * ROWS_WARPS * 16;
        let numbers = 2 * SPAN * size_of::<u32>();
        Self {
            kernel: format!("attention_rows_{kind}_{width}"),
            threads: 256,
            shared: read_bytes(words, tile) + tiles * 16 * width * 2 + told + numbers + aside,
            place: place_bytes(words, step, width),
            ring: 3,
            grid: [rows.div_ceil(16 * tiles), kv_heads],
            enough: 2,
            token: false,
            together: true,
        }
    }

    /// `AttentionWgmma` of `attention_wgmma.cu`, likewise: the same rows of a block, which has a multiprocessor to itself.
    fn on_hopper(self, kind: &str, width: usize) -> Self {
        const PLACES: usize = 6;
        // Two barriers of each place, the rows of a block, and the sums of all spans.
        let behind =
            2 * PLACES * size_of::<u64>() + 32 + 16 * ROWS_WARPS * width * size_of::<f32>();
        Self {
            kernel: format!("attention_wgmma_{kind}_{width}"),
            threads: 384,
            shared: self.shared + behind,
            ring: PLACES,
            enough: 1,
            ..self
        }
    }

    /// `AttentionToken` of `attention_token.cuh`, likewise, with so many warps: eight, or four where there are works for twice as many
    /// blocks.
    fn token(kind: &str, words: bool, width: usize, warps: usize, grid: [usize; 2]) -> Self {
        let (chunk, unit) = (warps * 2048 / width, 16);
        let units = chunk / unit;
        // Weights, their sums and the largest scores, or a head for each of the warps.
        let weighed = units * (32 * 16 + 32 * 8 + TOKEN_ROWS * 4);
        let told = if width > 128 { warps * width * size_of::<f32>() } else { weighed };
        let of_warps = if warps == 8 { "" } else { "_4" };
        Self {
            kernel: format!("attention_token_{kind}_{width}{of_warps}"),
            threads: count(32 * warps),
            shared: read_bytes(words, chunk * width * 2) + TOKEN_ROWS * width * 2 + told,
            place: place_bytes(words, unit, width),
            // K of a chunk, and V.
            ring: 2 * units,
            grid,
            enough: 2,
            token: true,
            together: false,
        }
    }

    /// Whether works are few enough that spans should have blocks of their own. Blocks of a prompt, of which one fills a
    /// multiprocessor, keep the card as busy where they nearly fill it once or twice, and nothing has to be joined.
    fn leaves_idle(&self, multiprocessors: usize) -> bool {
        let works = self.grid.iter().product::<usize>();
        let nearly = || 4 * works >= 3 * multiprocessors * works.div_ceil(multiprocessors);
        works < self.enough * multiprocessors && !(self.together && nearly())
    }

    /// Of a kernel for a token at a time: as many blocks as are there at the same time, which fill the `shared` memory of a
    /// multiprocessor, and one of each where that is enough.
    fn fill(&mut self, shared: usize, multiprocessors: usize, z: usize) {
        let works = self.grid.iter().product::<usize>();
        let (least, longest) = (self.ring, 2 * self.ring);
        let ring = |blocks: usize| {
            let each = (shared + BLOCK_RESERVES) / blocks;
            each.saturating_sub(BLOCK_RESERVES + self.shared) / self.place
        };
        let wanted = (works * z).div_ceil(multiprocessors.max(1));
        let most = wanted.min((TOKEN_THREADS / self.threads) as usize);
        let together = (2..=most).rev().find(|blocks| ring(*blocks) >= least).unwrap_or(1);
        self.ring = ring(together).clamp(least, longest);
        let blocks = multiprocessors.max(1) * together;
        self.grid = [if z == 1 { works.min(blocks) } else { works }, 1];
    }
}

/// K or V of so many positions as they are brought.
fn place_bytes(words: bool, positions: usize, width: usize) -> usize {
    let bytes = width + width / CACHE_GROUP * size_of::<f32>();
    positions * if words { 2 * width } else { bytes }
}

/// What bytes are widened to.
fn read_bytes(words: bool, tile: usize) -> usize {
    if words { 0 } else { tile }
}

/// Runs of sequences, given the tokens of each: long ones share blocks, where the kernel can.
fn runs(lengths: &[usize], can_share: bool) -> Vec<Run> {
    let (mut runs, mut first) = (Vec::<Run>::new(), 0);
    for length in lengths.iter().filter(|length| **length > 0) {
        let (end, together) = (first + length, can_share && *length >= TOGETHER);
        match runs.last_mut() {
            Some(run) if run.together == together => run.end = end,
            _ => runs.push(Run { first, end, together }),
        }
        first = end;
    }
    runs
}

/// Of `attention.cuh`.
pub(super) const SPAN: usize = 256;
/// Of `attention_f32.cu`.
const F32_HEADS: usize = 4;
/// Of `attention.cu`.
const ROWS_WARPS: usize = 8;
/// Of `attention_token.cuh`.
const TOKEN_ROWS: usize = 16;
/// Threads of `attention_token.cuh` whose registers fill a multiprocessor.
const TOKEN_THREADS: u32 = 512;
/// Shared memory that a multiprocessor keeps for itself of each block.
const BLOCK_RESERVES: usize = 1 << 10;
/// Tokens of a sequence from which on they share blocks: fewer (drafts) read K and V once for each.
const TOGETHER: usize = 8;
/// Memory that splitting may take: 30 tokens of 32 heads of 128 values at 32,768 positions.
const RECORDS_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_nearly_fill_a_card_are_not_split() {
        let split = |tokens, dtype, wgmma| {
            let (num_blocks, num_layers, block_size) = (1, 1, 16);
            let (num_kv_heads, head_dim) = (8, 128);
            let shape =
                CacheShape { num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype };
            let run = Run { first: 0, end: tokens, together: tokens >= TOGETHER };
            Plan::new(&shape, 4, run, 264, wgmma).leaves_idle(132)
        };
        // Blocks of 32 tokens: 96, 99 and 104, 128; 136, 192, 200, 264.
        for (tokens, expected) in [
            (384, true),
            (416, false),
            (512, false),
            (544, true),
            (768, true),
            (800, false),
            (1056, false),
        ] {
            assert_eq!(split(tokens, CacheDtype::F16, false), expected, "{tokens}");
            assert_eq!(split(tokens, CacheDtype::F16, true), expected && tokens < 500, "{tokens}");
        }
        // A token each: two blocks to a multiprocessor.
        assert!(split(1, CacheDtype::I8, false) && split(7, CacheDtype::F32, false));
    }

    #[test]
    fn many_works_have_blocks_of_four_warps_as_many_as_there_is_room_for() {
        let planned = |tokens, shared: usize| {
            let (num_blocks, num_layers, block_size) = (1, 1, 16);
            let (num_kv_heads, head_dim, dtype) = (8, 128, CacheDtype::F16);
            let shape =
                CacheShape { num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype };
            let run = Run { first: 0, end: tokens, together: false };
            let mut plan = Plan::new(&shape, 4, run, 264, true);
            plan.fill(shared << 10, 132, 1);
            (plan.threads, plan.grid[0], plan.ring)
        };
        // Eight works a token; one block to a multiprocessor, then two, then three and four.
        assert_eq!(planned(16, 227), (256, 128, 32));
        assert_eq!(planned(33, 227), (256, 264, 25));
        assert_eq!(planned(34, 227), (128, 272, 16));
        assert_eq!(planned(256, 227), (128, 528, 12));
        // Less shared memory has room for fewer.
        assert_eq!(planned(256, 163), (128, 528, 8));
        assert_eq!(planned(256, 99), (128, 264, 10));
        assert_eq!(planned(33, 99), (256, 132, 22));
    }

    #[test]
    fn prompts_share_blocks_and_what_decodes_does_not() {
        let run = |first, end, together| Run { first, end, together };
        assert_eq!(runs(&[], true), []);
        assert_eq!(runs(&[1, 0, 1, 3], true), [run(0, 5, false)]);
        assert_eq!(
            runs(&[1, 1, 8, 200, 1], true),
            [run(0, 2, false), run(2, 210, true), run(210, 211, false)]
        );
        assert_eq!(runs(&[1, 200], false), [run(0, 201, false)]);
    }
}
