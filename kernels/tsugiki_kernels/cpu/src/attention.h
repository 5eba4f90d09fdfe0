// Where things stand in one call of paged attention; mirrored by attention.py.
#pragma once

#include "step.h"

namespace tsugiki {

// A step of the head dimension as scores walk it: a pair of bfloat16 dimensions, or one dimension.
inline int64_t dims_per_step(Dtype dtype, int64_t dim) {
  return dtype == BFLOAT16 && dim % 2 == 0 ? 2 : 1;
}

// The cache is [2, blocks, kv_heads, block_size * dim] elements. Values of a block lie position by
// position, [block_size, dim]; keys step by step, [dim / dims_per_step, block_size, dims_per_step].
struct Attention {
  const void* q;  // [rows, heads, dim], unit stride in dim
  int64_t q_row_stride, q_head_stride;
  const void* cache;
  int64_t side;                 // elements from the keys to the values
  void* out;                    // [rows, heads, dim], unit stride in dim
  int64_t out_row_stride, out_head_stride;
  const int32_t* query_start;   // [sequences + 1]
  const int32_t* context;       // [sequences]
  const int32_t* block_tables;  // [sequences, table_stride]
  int64_t table_stride;
  int64_t sequences, heads, kv_heads, dim, block_size;
  int64_t window;  // positions a row sees, itself included; 0: all
  int32_t dtype, threads;
  float scale;
  int32_t unused;
};

struct KeyValueRows {
  const void *k, *v;  // [rows, kv_heads, dim], unit stride in dim
  int64_t k_row_stride, k_head_stride, v_row_stride, v_head_stride;
  void* cache;
  int64_t side;
  const int64_t* slots;  // [rows]
  int64_t rows, kv_heads, dim, block_size;
  int32_t dtype, unused;
};

}  // namespace tsugiki
