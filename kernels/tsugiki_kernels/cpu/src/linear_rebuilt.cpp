// A dense linear whose weight is rebuilt on the way: out = x (W + D)^T + bias.
//
// Each thread rebuilds a few rows of weight at a time, in memory of its own that stays in the
// second-level cache, and multiplies at once: the rebuilt weight never goes to memory.

#include <numeric>

#include "linear.h"
#include "reconstruct.h"

namespace tsugiki {

constexpr int64_t AT_ONCE = 2 * LANES;  // outputs

// Mirrored by linear.py.
struct RebuiltLinear {
  Linear linear;
  const void* delta;
};

// What one task computes: consecutive groups of a part, or outputs that no part covers.
struct Piece {
  int64_t first, last;  // outputs
  int64_t part;         // -1: none
};

template <class Whole>
class Pieces {
 public:
  std::vector<Piece>& pieces = reused<Piece>();

  Pieces(const Linear& linear, const Whole& delta, int64_t each) : each(each) {
    std::vector<int64_t>& order = reused<int64_t>();
    order.resize(delta.count);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return delta.parts[a].offset < delta.parts[b].offset; });
    int64_t at = 0;
    for (int64_t p : order) {
      const auto& part = delta.parts[p];
      add(at, part.offset, -1);
      add(part.offset, part.offset + part.rows, p);
      at = part.offset + part.rows;
    }
    add(at, linear.outputs, -1);
  }

 private:
  void add(int64_t first, int64_t last, int64_t part) {
    for (int64_t o = first; o < last; o += each)
      pieces.push_back({o, std::min(o + each, last), part});
  }

  int64_t each;
};

// Some outputs at a time are rebuilt and multiplied, while the base of the next ones is fetched.
template <class Whole>
void multiply_piece(const Linear& linear, const Whole& delta, const Piece& piece,
                    const Panel& rows) {
  const char* base = (const char*)linear.weight;
  for (int64_t first = piece.first; first < piece.last; first += AT_ONCE) {
    Stretch some{first, std::min(first + AT_ONCE, piece.last), base + first * linear.row_bytes(),
                 base + (first + AT_ONCE) * linear.row_bytes()};
    if (piece.part >= 0) {
      void* rebuilt = scratch(MIDDLE, AT_ONCE * linear.row_bytes() / sizeof(float));
      const Rebuilding where{base, rebuilt, first, linear.inputs, Dtype(linear.dtype)};
      const auto& part = delta.parts[piece.part];
      for (int64_t output = first; output < some.last; output += LANES)
        rebuild_group(part, (output - part.offset) / LANES, where);
      some.weight = rebuilt;
    }
    multiply_stretch(linear, some, rows);
  }
}

template <class Whole>
void run(const RebuiltLinear& call) {
  const Linear& linear = call.linear;
  const Whole& delta = *(const Whole*)call.delta;
  const Panel rows = rows_of(linear);
  const Pieces<Whole> all(linear, delta, outputs_per_task(linear, rows));
  parallel_for(int64_t(all.pieces.size()), linear.threads, worth_forking(linear, rows),
               [&](int64_t task) {
                 multiply_piece(linear, delta, all.pieces[task], rows);
               });
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_sparse_linear(const RebuiltLinear* call) { run<SparseLinear>(*call); }

extern "C" void tsugiki_sign_linear(const RebuiltLinear* call) { run<SignLinear>(*call); }
