// What the blocks of one row and head have found, `[rows, heads, parts, DV + 2]`, becomes the result
// `[rows, heads, 1, DV]`. The last two numbers of a part are its greatest score and its sum of weights.
const int count = parts_shape[2];
const float* found = parts + int64_t(blockIdx.x) * count * (DV + 2);
float most = -3.4e38f, total = 0;
for (int part = 0; part < count; ++part) most = max(most, found[part * (DV + 2) + DV]);
for (int part = 0; part < count; ++part) {
  total += found[part * (DV + 2) + DV + 1] * exp2f(found[part * (DV + 2) + DV] - most);
}
for (int i = threadIdx.x; i < DV; i += blockDim.x) {
  float sum = 0;
  for (int part = 0; part < count; ++part) {
    sum += found[part * (DV + 2) + i] * exp2f(found[part * (DV + 2) + DV] - most);
  }
  out[int64_t(blockIdx.x) * DV + i] = T(sum / total);
}
