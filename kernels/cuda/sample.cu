// The tokens that a step chooses: the largest logit, or a draw from what the cuts leave. Where `top_k` is small: sample_few.cu
//   what lies where: sample.cuh; every kernel takes the same struct
// Launch:  block = 256. In this order, each only where there are such draws; P is cols / 4,096 rounded up. Draws of sample_few.cu
//          are among those with edits alone:
//          sample_edit     grid = (most edits of a draw / 256 rounded up, draws): changes logits
//          sample_largest  grid = (P, draws)
//          sample_bins     grid = (P, draws with cuts): tokens and shares by 1/64 of distance
//          sample_near     grid = (P, draws with cuts): tokens by 2^-18 of distance, within the bin where the cut is
//          sample_near     grid = (P, draws with both cuts): the same for the second one
//          sample_draw     grid = (P, draws that are not greedy)
//          sample_few      in a file of its own
//          sample_edit     as before, with `undo`: puts back what was there
// Bound:   memory; 4 bytes a logit each, most from the second-level cache.
// Meaning: src/reference/choose.rs, to the last bit. What is summed are whole numbers, and maxima are of whole numbers, so that
//          nothing depends on the order of blocks and threads.
// Source:  none; selection by digits, as radix sorts do it, of distances instead of values so that bins are of even width.
#include "sample.cuh"

namespace sample {

KERNEL(256, sample_edit, Sample) {
  const Draw& draw = p.draws[blockIdx.y];
  const uint32_t i = blockIdx.x * SAMPLE_THREADS + threadIdx.x;
  if (i >= draw.num_edits) return;
  Edit& edit = p.edits[draw.first_edit + i];
  float& logit = p.x[(size_t)draw.row * p.cols + edit.token];
  if (p.undo) {
    logit = edit.bias;
    return;
  }
  const float before = logit;
  float x = before + edit.bias;
  x = x > 0.0f ? x / edit.repetition : x * edit.repetition;
  logit = x - edit.lowered;
  edit.bias = before;
}

KERNEL(256, sample_largest, Sample) {
  __shared__ unsigned long long warps[SAMPLE_THREADS / WARP];
  const uint32_t draw = blockIdx.y;
  const float* x = p.x + (size_t)p.draws[draw].row * p.cols;
  unsigned long long best = 0;
  each_value(x, p.cols, [&best](uint32_t i, float value) {
    const unsigned long long key = order_key(value, i);
    if (key > best) best = key;
  });
  for (int apart = 16; apart > 0; apart /= 2) {
    const unsigned long long other = __shfl_xor_sync(ALL_LANES, best, apart);
    if (other > best) best = other;
  }
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (uint32_t w = 1; w < SAMPLE_THREADS / WARP; w++) {
      if (warps[w] > best) best = warps[w];
    }
    atomicMax(&p.keys[draw], best);
    if (blockIdx.x == 0 && draw < p.drawn) p.cuts[draw] = {0, 0, 0, NOWHERE, 0, 0, 0};
  }
  // What the next kernels count in; each block clears a part.
  if (draw < p.cut) {
    const uint32_t pieces = pieces_of(p.cols);
    uint32_t* words = (uint32_t*)&p.bins[draw];
    for (uint32_t i = blockIdx.x * SAMPLE_THREADS + threadIdx.x; i < sizeof(Bins) / 4; i += pieces * SAMPLE_THREADS) words[i] = 0;
  }
}

// Looks for the part of all shares that `top_p` keeps.
__device__ __forceinline__ void look_for_part(Cut& cut, const Bins& bins, unsigned long long part, unsigned long long total) {
  const unsigned long long enough = enough_of(total, part);
  unsigned long long sums[BINS / SAMPLE_THREADS];
#pragma unroll
  for (uint32_t i = 0; i < BINS / SAMPLE_THREADS; i++) sums[i] = __ldcg(&bins.sums[threadIdx.x * (BINS / SAMPLE_THREADS) + i]);
  const Found found = find(sums, enough);
  if (threadIdx.x == 0) {
    cut.kind = 2;
    cut.bin = found.at;
    cut.target = enough - found.before;
  }
}

// The sum of the shares of all bins before `end`.
__device__ __forceinline__ unsigned long long sum_before(const Bins& bins, uint32_t end) {
  unsigned long long sum = 0;
  for (uint32_t bin = threadIdx.x; bin < end; bin += SAMPLE_THREADS) sum += __ldcg(&bins.sums[bin]);
  return sum_of_block(sum);
}

KERNEL(256, sample_bins, Sample) {
  // Shares of a piece in halves of 20 bits: sums of 4,096 of them fit.
  __shared__ uint32_t counts[BINS], low[BINS], high[BINS];
  const Draw& draw = p.draws[blockIdx.y];
  const unsigned long long key = p.keys[blockIdx.y];
  if (key == NO_TOKEN) return;
  for (uint32_t bin = threadIdx.x; bin < BINS; bin += SAMPLE_THREADS) counts[bin] = low[bin] = high[bin] = 0;
  __syncthreads();
  const float* x = p.x + (size_t)draw.row * p.cols;
  const float max = value_of(key), scale = draw.scale;
  const bool weighs = draw.part < 1ull << 32;
  each_value(x, p.cols, [&](uint32_t, float value) {
    const uint32_t distance = distance_of(value, max, scale);
    if (distance >= FAR) return;
    const uint32_t bin = distance >> NEAR_BITS;
    atomicAdd(&counts[bin], 1u);
    if (weighs) {
      const unsigned long long share = share_of(distance, 0.0f);
      atomicAdd(&low[bin], (uint32_t)share & 0xfffffu);
      atomicAdd(&high[bin], (uint32_t)(share >> 20));
    }
  });
  __syncthreads();
  Bins& bins = p.bins[blockIdx.y];
  for (uint32_t bin = threadIdx.x; bin < BINS; bin += SAMPLE_THREADS) {
    if (counts[bin] == 0) continue;
    atomicAdd(&bins.counts[bin], counts[bin]);
    if (weighs) atomicAdd(&bins.sums[bin], ((unsigned long long)high[bin] << 20) + low[bin]);
  }
  Cut& cut = p.cuts[blockIdx.y];
  if (!comes_last(&cut.arrived, pieces_of(p.cols))) return;

  // In which bin the first cut is. Where there are fewer tokens than `top_k` keeps, it is none.
  if (draw.top_k > 0) {
    unsigned long long tokens[BINS / SAMPLE_THREADS];
#pragma unroll
    for (uint32_t i = 0; i < BINS / SAMPLE_THREADS; i++) {
      tokens[i] = __ldcg(&bins.counts[threadIdx.x * (BINS / SAMPLE_THREADS) + i]);
    }
    const Found found = find(tokens, (unsigned long long)draw.top_k);
    if (found.at != NOWHERE) {
      if (threadIdx.x == 0) {
        cut.kind = 1;
        cut.bin = found.at;
        cut.target = draw.top_k - found.before;
      }
      return;
    }
  }
  if (weighs) look_for_part(cut, bins, draw.part, sum_before(bins, BINS));
}

KERNEL(256, sample_near, Sample) {
  __shared__ uint32_t counts[NEAR];
  Cut& cut = p.cuts[blockIdx.y];
  const uint32_t kind = cut.kind, bin = cut.bin;
  if (kind == 0) return;
  for (uint32_t i = threadIdx.x; i < NEAR; i += SAMPLE_THREADS) counts[i] = 0;
  __syncthreads();
  const Draw& draw = p.draws[blockIdx.y];
  const float* x = p.x + (size_t)draw.row * p.cols;
  const float max = value_of(p.keys[blockIdx.y]), scale = draw.scale;
  each_value(x, p.cols, [&](uint32_t, float value) {
    const uint32_t distance = distance_of(value, max, scale);
    if (distance >> NEAR_BITS == bin) atomicAdd(&counts[distance % NEAR], 1u);
  });
  __syncthreads();
  Bins& bins = p.bins[blockIdx.y];
  for (uint32_t i = threadIdx.x; i < NEAR; i += SAMPLE_THREADS) {
    if (counts[i] != 0) atomicAdd(&bins.near[i], counts[i]);
  }
  if (!comes_last(&cut.arrived, pieces_of(p.cols))) return;

  // At which distance the cut is, and how many of those there it keeps.
  constexpr uint32_t EACH = NEAR / SAMPLE_THREADS;
  const uint32_t mine = threadIdx.x * EACH, nearest = bin << NEAR_BITS;
  unsigned long long reach[EACH];
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    const uint32_t count = __ldcg(&bins.near[mine + i]);
    // For the second cut.
    bins.near[mine + i] = 0;
    reach[i] = kind == 1 ? count : count * share_of(nearest + mine + i, 0.0f);
  }
  const Found found = find(reach, cut.target);
  const uint32_t limit = nearest + found.at;
  const unsigned long long rest = cut.target - found.before, share = share_of(limit, 0.0f);
  if (threadIdx.x == 0) {
    cut.limit = limit;
    cut.rest = (uint32_t)(kind == 1 ? rest : (rest + share - 1) / share);
    cut.kind = 0;
  }
  if (kind == 2 || draw.part >= 1ull << 32) return;
  unsigned long long sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    if (mine + i < found.at) sum += reach[i] * share_of(nearest + mine + i, 0.0f);
  }
  const unsigned long long kept = sum_before(bins, bin) + sum_of_block(sum) + rest * share;
  look_for_part(cut, bins, draw.part, kept);
}

// Where in a row the token is.
struct Place {
  uint32_t piece;
  uint32_t rest;          // tokens at the limit that are kept from here on
  unsigned long long at;  // of the shares of the piece
};

// Finds the piece by the sums of all, which `pieces` has read.
__device__ __forceinline__ Place place_of(const Draw& draw, const Cut& cut, const Piece* pieces, uint32_t count) {
  const unsigned long long share = cut.limit == NOWHERE ? 0 : share_of(cut.limit, draw.min_p);
  unsigned long long total = 0, left = cut.rest;
  for (uint32_t i = 0; i < count; i++) {
    const unsigned long long equal = pieces[i].equal < left ? pieces[i].equal : left;
    total += pieces[i].sum + equal * share;
    left -= equal;
  }
  Place place = {0, cut.rest, scaled<53>(total, draw.bits)};
  for (; place.piece + 1 < count; place.piece++) {
    const Piece& piece = pieces[place.piece];
    const uint32_t equal = piece.equal < place.rest ? (uint32_t)piece.equal : place.rest;
    const unsigned long long sum = piece.sum + equal * share;
    if (place.at < sum) break;
    place.at -= sum;
    place.rest -= equal;
  }
  return place;
}

KERNEL(256, sample_draw, Sample) {
  __shared__ Piece pieces[PIECES_MAX];
  __shared__ Place place;
  const Draw& draw = p.draws[blockIdx.y];
  const unsigned long long key = p.keys[blockIdx.y];
  if (key == NO_TOKEN) return;
  Cut& cut = p.cuts[blockIdx.y];
  const float* x = p.x + (size_t)draw.row * p.cols;
  const float max = value_of(key), scale = draw.scale, min_p = draw.min_p;
  const uint32_t limit = cut.limit;
  unsigned long long sum = 0, equal = 0;
  each_value(x, p.cols, [&](uint32_t, float value) {
    const uint32_t distance = distance_of(value, max, scale);
    if (distance < limit) sum += share_of(distance, min_p);
    equal += distance == limit;
  });
  sum = sum_of_block(sum);
  equal = sum_of_block(equal);
  const uint32_t count = pieces_of(p.cols);
  Piece* mine = p.pieces + (size_t)blockIdx.y * count;
  if (threadIdx.x == 0) mine[blockIdx.x] = {sum, equal};
  if (!comes_last(&cut.arrived, count)) return;

  if (threadIdx.x < count) pieces[threadIdx.x] = {__ldcg(&mine[threadIdx.x].sum), __ldcg(&mine[threadIdx.x].equal)};
  __syncthreads();
  if (threadIdx.x == 0) place = place_of(draw, cut, pieces, count);
  __syncthreads();
  // The tokens of its piece in their order, some to a thread.
  constexpr uint32_t EACH = PIECE / SAMPLE_THREADS;
  const uint32_t token = place.piece * PIECE + threadIdx.x * EACH;
  uint32_t distances[EACH];
  unsigned long long here = 0, unused;
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    distances[i] = token + i < p.cols ? distance_of(x[token + i], max, scale) : NOWHERE;
    here += distances[i] == limit && limit != NOWHERE;
  }
  unsigned long long before = scan(here, unused);
  unsigned long long shares[EACH];
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    const bool at_limit = distances[i] == limit, kept = at_limit ? before < place.rest : distances[i] < limit;
    before += at_limit;
    shares[i] = kept && distances[i] != NOWHERE ? share_of(distances[i], min_p) : 0;
  }
  // The place lies in the share with which sums exceed it.
  const Found found = find(shares, place.at + 1);
  if (threadIdx.x == 0) p.keys[blockIdx.y] = 1ull << 32 | (0xffffffffu - (place.piece * PIECE + found.at));
}

}  // namespace sample
