// Where things stand in one call of paged attention; mirrored by attention.py.
#pragma once

#include "step.h"

namespace tsugiki {

struct Attention {
  const void* q;  // [rows, heads, dim], unit stride in dim
  int64_t q_row_stride, q_head_stride;
  const void* cache;            // [2, blocks, kv_heads, block_size, dim], contiguous
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
  void* cache;  // as above
  int64_t side;
  const int64_t* slots;  // [rows]
  int64_t rows, kv_heads, dim, block_size;
  int32_t dtype, unused;
};

}  // namespace tsugiki
