// W = W_base + S signs: a warp takes a row, a lane eight neighbouring columns of each 256.

#include "sign.cuh"

constexpr int32_t THREADS = 256;
constexpr int32_t LANE_COLUMNS = 8;

// The word with the signs of a row's columns 8 lane .. 8 lane + 7 of a unit.
DEVICE uint32_t sign_word(const SignPart& part, int32_t row, int32_t unit, int32_t lane) {
  const int32_t units = (part.inputs + UNIT_COLUMNS - 1) / UNIT_COLUMNS;
  const int32_t place = row % SIGN_ROWS, tile = place % 8 / 2, owner = place / 8 * 4 + lane % 4;
  const int64_t tile_index = (int64_t{row / SIGN_ROWS} * units + unit) * SIGN_TILES + tile;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(part.signs);
  return words[(tile_index * WARP + owner) * 4 + lane / 8];
}

template <class T>
DEVICE void rebuild(const T* base, T* out, const SignPart& part) {
  const int32_t lane = threadIdx.x % WARP;
  const int32_t row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
  if (row >= part.outputs) return;
  const float scale = sign_scale(part, row);
  const int64_t first = int64_t{part.offset + row} * part.inputs;
  const int32_t bit = sign_bit(row % 2, lane / 4 % 2, 0);
#pragma unroll 4
  for (int32_t column = lane * LANE_COLUMNS; column < part.inputs; column += UNIT_COLUMNS) {
    const uint32_t word = sign_word(part, row, column / UNIT_COLUMNS, lane);
    const int32_t count = min(LANE_COLUMNS, part.inputs - column);
    const Eight<T> before = load_up_to(base + first + column, count);
    float values[8];
#pragma unroll
    for (int32_t i = 0; i < 8; ++i)
      values[i] = fmaf(scale, sign_at(word, bit + i), value_at(before, i));
    store_up_to(out + first + column, count, values);
  }
}

#define REBUILD(NAME, T)                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS) tsugiki_sign_rebuild_##NAME( \
      const T* base, T* out, int64_t part) {                                   \
    rebuild(base, out, *reinterpret_cast<const SignPart*>(part));              \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
