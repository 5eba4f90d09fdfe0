// W = W_base + D for sparse deltas. A block copies a piece of the base to shared memory with 16-byte
// loads, changes the kept elements there, and stores the piece with 16-byte streaming stores. Each
// element is changed by one thread, product and sum rounded one by one as on the CPU.

#include "eight.cuh"
#include "sparse_tiles.cuh"

constexpr int32_t ROW_BYTES = 2048;       // of a row of a piece of the tile form
constexpr int32_t PAD_BYTES = 16;         // after each row, so that rows begin in different banks
constexpr int32_t PIECE_BYTES = GROUP * (ROW_BYTES + PAD_BYTES);

// `rows` rows of the weight by `columns` columns, in shared memory.
template <class T>
struct Piece {
  static constexpr int32_t WIDTH = 16 / sizeof(T);
  T* values;
  int64_t first;  // element of the weight
  int32_t rows, columns, stride;  // stride: of the weight

  DEVICE T& at(int32_t row, int32_t column) const {
    return values[row * (columns + PAD_BYTES / sizeof(T)) + column];
  }

  DEVICE bool aligned(const T* weight) const {
    return is_aligned(weight + first) && stride % WIDTH == 0 && columns % WIDTH == 0;
  }

  DEVICE void load(const T* base) const {
    if (aligned(base)) {
      const int32_t per_row = columns / WIDTH;
#pragma unroll 4
      for (int32_t i = threadIdx.x; i < rows * per_row; i += SPARSE_THREADS) {
        const int32_t row = i / per_row, column = i % per_row * WIDTH;
        *reinterpret_cast<uint4*>(&at(row, column)) =
            load_stream(base + first + int64_t{row} * stride + column);
      }
    } else {
#pragma unroll 1
      for (int32_t i = threadIdx.x; i < rows * columns; i += SPARSE_THREADS)
        at(i / columns, i % columns) = base[first + int64_t{i / columns} * stride + i % columns];
    }
  }

  DEVICE void store(T* out) const {
    if (aligned(out)) {
      const int32_t per_row = columns / WIDTH;
#pragma unroll 4
      for (int32_t i = threadIdx.x; i < rows * per_row; i += SPARSE_THREADS) {
        const int32_t row = i / per_row, column = i % per_row * WIDTH;
        store_stream(out + first + int64_t{row} * stride + column,
                     *reinterpret_cast<const uint4*>(&at(row, column)));
      }
    } else {
#pragma unroll 1
      for (int32_t i = threadIdx.x; i < rows * columns; i += SPARSE_THREADS)
        out[first + int64_t{i / columns} * stride + i % columns] = at(i / columns, i % columns);
    }
  }

  DEVICE void add(int32_t row, int32_t column, float change) const {
    T& place = at(row, column);
    place = from_float<T>(__fadd_rn(to_float(place), change));
  }
};

template <class T, int32_t BITS>
DEVICE void change_tile(const SparsePart& part, int32_t group, int32_t first_column,
                        const Piece<T>& piece) {
  const TileGroup tile = tile_group<BITS>(part, group);
  const int32_t first = columns_below(tile, first_column);
  const int32_t last = columns_below(tile, first_column + piece.columns);
  const int32_t row = threadIdx.x % GROUP;
  if (row >= piece.rows) return;
  const float step = step_of(part, group * GROUP + row);
#pragma unroll 2
  for (int32_t kept = first + threadIdx.x / GROUP; kept < last; kept += SPARSE_THREADS / GROUP) {
    const float code = code_at<BITS>(tile.codes, tile.words, kept, row);
    piece.add(row, tile.columns[kept] - first_column, __fmul_rn(step, code - part.zero));
  }
}

template <class T>
DEVICE void change_tile_of(const SparsePart& part, int32_t group, int32_t column,
                           const Piece<T>& piece) {
  switch (part.bits) {
    case 1: return change_tile<T, 1>(part, group, column, piece);
    case 2: return change_tile<T, 2>(part, group, column, piece);
    case 4: return change_tile<T, 4>(part, group, column, piece);
    default: return change_tile<T, 8>(part, group, column, piece);
  }
}

template <class T>
DEVICE void rebuild_tiles(const T* base, T* out, const SparsePart& part) {
  SHARED_ARRAY(T, values, PIECE_BYTES / sizeof(T));
  constexpr int32_t COLUMNS = ROW_BYTES / sizeof(T);
  const int32_t group = blockIdx.x, row = group * GROUP;
  for (int32_t column = 0; column < part.inputs; column += COLUMNS) {
    const Piece<T> piece{values, int64_t{part.offset + row} * part.inputs + column,
                         min(GROUP, part.outputs - row), min(COLUMNS, part.inputs - column),
                         part.inputs};
    piece.load(base);
    __syncthreads();
    change_tile_of(part, group, column, piece);
    __syncthreads();
    piece.store(out);
    __syncthreads();
  }
}

// Code `i` of the sixteen of a lane's step.
DEVICE float row_code(const SparsePart& part, int64_t step, int32_t i) {
  const int32_t bit = i * part.bits;
  const uint8_t byte = static_cast<const uint8_t*>(part.codes)[step * 2 * part.bits + bit / 8];
  return static_cast<float>(byte >> bit % 8 & ((1 << part.bits) - 1));
}

// The entries of one word: four of one row and lane.
template <class T>
DEVICE void change_word(const SparsePart& part, int64_t step, int32_t place_in_quad, int32_t row,
                        int32_t lane, const Piece<T>& piece, float scale) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(part.places);
  const uint32_t word = words[step * QUAD + place_in_quad];
#pragma unroll
  for (int32_t e = 0; e < 4; ++e) {
    const int32_t place = word >> (8 * e) & 0xff;
    if (place == part.block) continue;
    const float code = row_code(part, step, place_in_quad * 4 + e);
    piece.add(row, lane * part.block + place, __fmul_rn(scale, code - part.zero));
  }
}

template <class T>
DEVICE void rebuild_rows(const T* base, T* out, const SparsePart& part) {
  SHARED_ARRAY(T, values, PIECE_BYTES / sizeof(T));
  constexpr int32_t ROWS = 8 / sizeof(T);  // by up to 4096 columns
  const int32_t first_row = blockIdx.x * ROWS, columns = part.block * WARP;
  const int32_t steps = part.entries / 4;
  for (int32_t window = 0; window < part.windows; ++window) {
    const int32_t column = window * columns;
    const Piece<T> piece{values, int64_t{part.offset + first_row} * part.inputs + column,
                         min(ROWS, part.outputs - first_row), min(columns, part.inputs - column),
                         part.inputs};
    piece.load(base);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < piece.rows * steps * WARP; i += SPARSE_THREADS) {
      const int32_t lane = i % WARP, row = i / WARP % piece.rows, step = i / WARP / piece.rows;
      const int32_t global_row = first_row + row;
      const int64_t quad_window = int64_t{global_row / QUAD} * part.windows + window;
      change_word(part, (quad_window * steps + step) * WARP + lane, global_row % QUAD, row, lane,
                  piece, step_of(part, global_row));
    }
    __syncthreads();
    piece.store(out);
    __syncthreads();
  }
}

// Grids: a block for each 16 rows (tiles), for each 4 rows of 16-bit or 2 of 32-bit elements (rows).
#define REBUILD(FORM, NAME, T)                                                        \
  extern "C" __global__ void __launch_bounds__(SPARSE_THREADS)                        \
      tsugiki_sparse_rebuild_##FORM##_##NAME(const T* base, T* out, int64_t record) { \
    rebuild_##FORM<T>(base, out, *reinterpret_cast<const SparsePart*>(record));       \
  }

REBUILD(tiles, f16, f16)
REBUILD(tiles, bf16, bf16)
REBUILD(tiles, f32, float)
REBUILD(rows, f16, f16)
REBUILD(rows, bf16, bf16)
REBUILD(rows, f32, float)
