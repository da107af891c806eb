// Attention of one query a row and head over the first entries of a buffer, as many as the row's position
// says. The inputs, the output and these constants are declared by MLX:
//   T, D, DV       the type of queries, keys and values; the sizes of a key's and of a value's head
//   SCALE          the factor of the scores, as the bits of a float: a small array would be in the host's memory
//   LANES          threads that share a key; a power of two
//   HAS_SINKS      whether each head has a score of its own that no value follows
//   IS_PART        whether other blocks attend over other keys, so that the result is not yet divided
// A block has WARPS warps and attends for the head blockIdx.x of the row blockIdx.z over part blockIdx.y of
// the keys. Scores are in units of log2, so that exp2f serves.
constexpr int E = D / LANES, EV = DV / LANES;
constexpr int GROUPS = 32 * WARPS / LANES;
// Keys in flight at once hide the latency of memory, and cost registers.
constexpr int AT_ONCE = E > 16 || EV > 16 ? 1 : E > 8 || EV > 8 ? 2 : 4;
constexpr float LOG2_E = 1.44269504089f;
constexpr float LEAST = -3.4e38f;

const int head = blockIdx.x, part = blockIdx.y, row = blockIdx.z;
const int heads = queries_shape[1], kv_heads = keys_shape[1], capacity = keys_shape[2];
const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, warp = threadIdx.x / 32;
const int64_t kv_head = int64_t(row) * kv_heads + head / (heads / kv_heads);

const int filled = min(int(position[position_shape[0] == 1 ? 0 : row]) + 1, capacity);
const int share = (filled + gridDim.y - 1) / gridDim.y;
const int begin = part * share, end = min(begin + share, filled);

const T* key_of = keys + kv_head * capacity * D + lane * E;
const T* value_of = values + kv_head * capacity * DV + lane * EV;

float query[E], sum_of[EV];
read_elements<E>(queries + (int64_t(row) * heads + head) * D + lane * E, query);
for (int i = 0; i < E; ++i) query[i] *= __int_as_float(SCALE) * LOG2_E;
for (int i = 0; i < EV; ++i) sum_of[i] = 0;
float most = LEAST, total = 0;
if constexpr (HAS_SINKS) {
  if (part == 0 && group == 0) {
    most = float(sinks[head]) * LOG2_E;
    total = 1;
  }
}

for (int base = begin; base < end; base += GROUPS * AT_ONCE) {
  float score[AT_ONCE], entry[AT_ONCE][E], element[AT_ONCE][EV];
  // All reads come first, so that they wait for memory together. A key beyond the end is read at the end and
  // weighs nothing, so that all threads shuffle.
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) {
    const int64_t key = min(base + n * GROUPS + group, end - 1);
    read_elements<E>(key_of + key * D, entry[n]);
    read_elements<EV>(value_of + key * DV, element[n]);
  }
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) {
    score[n] = 0;
    for (int i = 0; i < E; ++i) score[n] += query[i] * entry[n][i];
  }
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
      score[n] += __shfl_xor_sync(0xffffffff, score[n], distance);
    }
    if (base + n * GROUPS + group >= end) score[n] = LEAST;
  }
  float now = most;
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) now = max(now, score[n]);
  const float fade = exp2f(most - now);
  most = now;
  total *= fade;
  for (int i = 0; i < EV; ++i) sum_of[i] *= fade;
#pragma unroll
  for (int n = 0; n < AT_ONCE; ++n) {
    const int key = base + n * GROUPS + group;
    const float weight = key < end ? exp2f(score[n] - most) : 0;
    total += weight;
    for (int i = 0; i < EV; ++i) sum_of[i] += weight * element[n][i];
  }
}

// The groups of a warp become one, then the warps.
for (int distance = LANES; distance < 32; distance *= 2) {
  const float other = __shfl_xor_sync(0xffffffff, most, distance);
  const float now = max(most, other);
  const float mine = exp2f(most - now), theirs = exp2f(other - now);
  most = now;
  total = total * mine + __shfl_xor_sync(0xffffffff, total, distance) * theirs;
  for (int i = 0; i < EV; ++i) {
    sum_of[i] = sum_of[i] * mine + __shfl_xor_sync(0xffffffff, sum_of[i], distance) * theirs;
  }
}
__shared__ float sums[WARPS][DV], mosts[WARPS], totals[WARPS];
if (threadIdx.x % 32 < LANES) {
  for (int i = 0; i < EV; ++i) sums[warp][lane * EV + i] = sum_of[i];
  if (lane == 0) {
    mosts[warp] = most;
    totals[warp] = total;
  }
}
__syncthreads();
most = LEAST;
for (int w = 0; w < WARPS; ++w) most = max(most, mosts[w]);
total = 0;
for (int w = 0; w < WARPS; ++w) total += totals[w] * exp2f(mosts[w] - most);

const int64_t place = (int64_t(row) * heads + head) * gridDim.y + part;
for (int i = threadIdx.x; i < DV; i += 32 * WARPS) {
  float sum = 0;
  for (int w = 0; w < WARPS; ++w) sum += sums[w][i] * exp2f(mosts[w] - most);
  if constexpr (IS_PART) {
    out[place * (DV + 2) + i] = sum;
  } else {
    out[place * DV + i] = T(sum / total);
  }
}
if constexpr (IS_PART) {
  if (threadIdx.x == 0) {
    out[place * (DV + 2) + DV] = most;
    out[place * (DV + 2) + DV + 1] = total;
  }
}
