// A linear on the E8P lattice rebuilt into the dense weight that it stands for: a block decodes a row
// and rotates it back.

#include "hadamard.cuh"
#include "lattice.cuh"

struct Stages {
  const uint16_t* codes;
  const void* residual;  // bits 3: uint8, bits 4: uint16, bits 2: none
  int32_t bits;
  float factor;  // the second stage is multiplied with it
};

// Twice the eight weights of code `index`.
DEVICE void decode(const uint32_t* tables, const Stages& stages, int64_t index,
                   float (&weights)[GROUP]) {
#pragma unroll
  for (int32_t i = 0; i < GROUP; ++i) weights[i] = 0.0f;
  const Codes first{{stages.codes[index], 0, 0, 0}};
  add_weights(wide_nibbles(tables, first, 0), WIDE_CENTER, 1.0f, weights);
  if (stages.bits == 3) {
    const Codes second{{static_cast<const uint8_t*>(stages.residual)[index], 0, 0, 0}};
    add_weights(narrow_nibbles(tables, second, 0), NARROW_CENTER, stages.factor, weights);
  } else if (stages.bits == 4) {
    const Codes second{{static_cast<const uint16_t*>(stages.residual)[index], 0, 0, 0}};
    add_weights(wide_nibbles(tables, second, 0), WIDE_CENTER, stages.factor, weights);
  }
}

template <class T>
DEVICE void rebuild(const Stages& stages, const uint32_t* tables, const bf16* scales,
                    const float* signs, const Rotation& rotation, float norm, T* out) {
  DYN_SHARED(float, values);
  SHARED_ARRAY(uint32_t, own_tables, LATTICE_TABLES * ENTRIES);
  load_tables(tables, own_tables, ROTATION_THREADS);
  constexpr int32_t STEP = ROTATION_THREADS * NEIGHBOURS;
  const int64_t first = int64_t{blockIdx.x} * rotation.width;
  float own[NEIGHBOURS];
  for (int32_t column = threadIdx.x * NEIGHBOURS; column < rotation.width; column += STEP) {
    decode(own_tables, stages, (first + column) / GROUP, own);
    butterflies(own, rotation.power);
    store_neighbours(values, column, own);
  }
  finish_rotation(values, rotation);
  const float scale = to_float(scales[blockIdx.x]) * norm;
  for (int32_t column = threadIdx.x * NEIGHBOURS; column < rotation.width; column += STEP) {
    load_neighbours(values, column, own);
#pragma unroll
    for (int32_t i = 0; i < NEIGHBOURS; ++i) own[i] *= scale * signs[column + i];
    store_up_to(out + first + column, NEIGHBOURS, own);
  }
}

#define REBUILD(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(ROTATION_THREADS, 1) tsugiki_lattice_rebuild_##NAME( \
      const uint16_t* __restrict__ codes, const void* __restrict__ residual,                      \
      const uint32_t* __restrict__ tables, const bf16* __restrict__ scales,                       \
      const float* __restrict__ signs, const float* __restrict__ matrix, T* __restrict__ out,     \
      int32_t width, int32_t order, int32_t power, int32_t bits, float factor, float norm) {      \
    rebuild(Stages{codes, residual, bits, factor}, tables, scales, signs,                         \
            Rotation{matrix, width, order, power}, norm, out);                                    \
  }

REBUILD(f16, f16)
REBUILD(bf16, bf16)
REBUILD(f32, float)
