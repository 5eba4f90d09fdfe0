// Rows of a packed weight, as they were: the vectors of tokens in a table that is lm_head's too.

#include "weight.h"

#include "step.h"

namespace tsugiki {

// Mirrored by weight.py.
struct Lookup {
  const void* weight;
  int64_t outputs, inputs;
  const int64_t* index;  // [rows]
  int64_t rows;
  void* out;  // [rows, inputs]
  Dtype dtype;
  int32_t threads;
};

template <class Word>
void look_up(const Lookup& call, int64_t row) {
  const PackedShape shape{call.outputs, call.inputs, call.dtype};
  const int64_t output = call.index[row], group = output / LANES, lane = output % LANES;
  const int64_t pair = inputs_per_step(call.dtype), paired = call.inputs / pair * pair;
  const Word* from = (const Word*)call.weight;
  Word* out = (Word*)call.out + row * call.inputs;
  const Word* values = from + shape.place(group, 0) + lane * pair;
  const int64_t step = shape.lanes_of(group) * pair;
  for (int64_t c = 0; c < paired; c += pair, values += step)
    std::memcpy(out + c, values, pair * sizeof(Word));
  if (paired < call.inputs) out[paired] = from[shape.place(group, paired) + lane];
}

}  // namespace tsugiki

using namespace tsugiki;

// 1: an index is beyond the weight; nothing is written.
extern "C" int32_t tsugiki_lookup(const Lookup* call) {
  for (int64_t r = 0; r < call->rows; ++r)
    if (call->index[r] < 0 || call->index[r] >= call->outputs) return 1;
  parallel_for(call->rows, call->threads, call->rows >= 32, [&](int64_t row) {
    if (call->dtype == FLOAT32) return look_up<uint32_t>(*call, row);
    look_up<uint16_t>(*call, row);
  });
  return 0;
}
