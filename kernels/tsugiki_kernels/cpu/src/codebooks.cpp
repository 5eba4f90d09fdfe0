// Linears that are looked up: out = x W^T + bias, where W[r, c] is the entry that an index names in
// the codebook of row r and of the stretch of c; a variant's rows of x meet codebooks of their own.
//
// Memory is read for the indices, so they are read once for all rows of x: a thread takes sixteen rows
// of the weight at a time, and every variant's rows meet them while they lie in the first-level cache.
// The codebooks of four rows, the base's with a variant's changes added, are put together in float32,
// brought into registers, and looked up by permutations (codebook_units.h).
//
// Lane l of an output sums what a unit has in that lane, units and stretches in order; the lanes are
// summed at the end (sum_each). So an output's bits depend on its row of x and its weights alone.

#include <atomic>

#include "codebook_units.h"
#include "slices.h"

namespace tsugiki {

// Mirrored by codebooks.py.
struct BaseLinear {
  Step step;
  const CodebookPart* base;
  const Span* spans;  // the rows to compute; spans never overlap
  int64_t span_count;
  const Apply* deltas;  // changes of the base's codebooks, in parts that begin at multiples of 16; or null
};

constexpr int64_t ROWS_AT_ONCE = 4;  // of a weight, in registers
constexpr int MOST_ROWS = 4;         // of x that meet them
constexpr int64_t PANEL = 32;        // rows of x, which stay in the second-level cache

// Rows of x that meet the same indices: `tokens` of each of `variants`, one or the other being 1.
struct Meeting {
  int variants, tokens;
  int64_t places[MOST_ROWS];                   // among the rows that are laid out
  const CodebookLinear* changes[MOST_ROWS];    // of each variant; null: the base

  int64_t count() const { return variants * tokens; }
};

// What one call computes.
struct Lookups {
  const Step& step;
  const CodebookPart& map;   // its indices, and where its outputs begin
  bool is_base;              // its values are the base's, and the sum goes to out; else it is added there
  std::vector<int64_t> rows; // of x, in the order of the meetings
  std::vector<Meeting> meetings;
  uint64_t number;  // tells the threads when a call is another one

  int64_t cost() const {
    const int64_t groups = (map.rows + LANES - 1) / LANES;
    return groups * step.inputs * int64_t(meetings.size()) * 3;
  }
};

// Rows of x in order become meetings: up to four of a variant's, or one each of four variants.
class Meetings {
 public:
  explicit Meetings(Lookups& lookups) : lookups_(lookups) {}

  void add(int64_t row, const CodebookLinear* changes) {
    if (!run_.empty() && changes != changes_) end_run();
    changes_ = changes;
    run_.push_back(row);
    if (run_.size() == MOST_ROWS) end_run();
  }

  void end() {
    end_run();
    while (!singles_.empty()) {
      const size_t count = singles_.size() >= MOST_ROWS ? MOST_ROWS : 1;
      Meeting meeting{int(count), 1, {}, {}};
      for (size_t i = 0; i < count; ++i) {
        const auto& [row, changes] = singles_[singles_.size() - count + i];
        meeting.places[i] = place(row), meeting.changes[i] = changes;
      }
      singles_.resize(singles_.size() - count);
      lookups_.meetings.push_back(meeting);
    }
  }

 private:
  int64_t place(int64_t row) {
    lookups_.rows.push_back(row);
    return int64_t(lookups_.rows.size()) - 1;
  }

  void end_run() {
    if (run_.size() == 1) singles_.push_back({run_[0], changes_});
    if (run_.size() > 1) {
      Meeting meeting{1, int(run_.size()), {}, {changes_}};
      for (size_t i = 0; i < run_.size(); ++i) meeting.places[i] = place(run_[i]);
      lookups_.meetings.push_back(meeting);
    }
    run_.clear();
  }

  struct Single {
    int64_t row;
    const CodebookLinear* changes;
  };
  Lookups& lookups_;
  const CodebookLinear* changes_ = nullptr;
  std::vector<int64_t> run_;
  std::vector<Single> singles_;
};

// The rows of x as a unit reads them, stretch after stretch, each filled up with zeros. Every thread
// that works on a call has its own: to fetch what another core wrote takes longer.
template <class Unit>
struct Inputs {
  int64_t units;   // of a stretch
  int64_t stride;  // from one row to the next
  const typename Unit::Input* data;

  static Inputs of(const Lookups& lookups) {
    static thread_local uint64_t laid_out = 0;
    const CodebookPart& map = lookups.map;
    const int64_t units = (map.width + Unit::COLUMNS - 1) / Unit::COLUMNS;
    const int64_t stride = units * map.groups * Unit::COLUMNS;
    const int64_t count = int64_t(lookups.rows.size());
    auto* data = (typename Unit::Input*)scratch(
        TOKENS, count * stride * int64_t(sizeof(typename Unit::Input)) / 4);
    if (laid_out != lookups.number) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t g = 0; g < map.groups; ++g)
          for (int64_t u = 0; u < units; ++u)
            Unit::lay_out(lookups.step, lookups.rows[i], g * map.width + u * Unit::COLUMNS,
                          std::min<int64_t>(Unit::COLUMNS, map.width - u * Unit::COLUMNS),
                          data + i * stride + (g * units + u) * Unit::COLUMNS);
      laid_out = lookups.number;
    }
    return {units, stride, data};
  }
};

// Four rows of a weight, the last one again where there are fewer.
struct Rows4 {
  int64_t of[ROWS_AT_ONCE];

  Rows4(int64_t row, int64_t rows) {
    for (int64_t r = 0; r < ROWS_AT_ONCE; ++r) of[r] = std::min(row + r, rows - 1);
  }
};

// tables[group][row][variant]
template <class Unit>
void put_together(const Lookups& lookups, const Rows4& rows, const Meeting& meeting,
                  typename Unit::Table* tables) {
  const CodebookPart& map = lookups.map;
  for (int v = 0; v < meeting.variants; ++v)
    for (int64_t r = 0; r < ROWS_AT_ONCE; ++r) {
      const int64_t row = rows.of[r], output = map.offset + row;
      const CodebookLinear* changes = meeting.changes[v];
      const CodebookPart* part = changes == nullptr ? nullptr : changes->part_of(output);
      const Floats scale = splat(part == nullptr ? 0.0f : scale_of(*part, output - part->offset));
      for (int64_t g = 0; g < map.groups; ++g) {
        Floats entries = lookups.is_base ? values_of(map, row, g) : zeros();
        if (part != nullptr) entries = fma(values_of(*part, output - part->offset, g), scale, entries);
        tables[(g * ROWS_AT_ONCE + r) * meeting.variants + v] = Unit::table(entries);
      }
    }
}

// totals[e][r]: the lanes of row r (of sixteen, the first of these) times row e of x.
template <class Unit, int BITS, int ROWS, int VARIANTS, int COUNT>
inline void meet_rows(const CodebookPart& map, const Rows4& rows, int first,
                      const typename Unit::Table* tables, int64_t units,
                      const typename Unit::Input* const* x, Floats (*totals)[LANES], int place) {
  constexpr int BYTES = Unit::COLUMNS * BITS / 8;
  Floats total[ROWS][COUNT];
  for (int r = 0; r < ROWS; ++r)
    for (int e = 0; e < COUNT; ++e) total[r][e] = zeros();
  const int64_t whole = map.width / Unit::COLUMNS, rest = map.width % Unit::COLUMNS;
  for (int64_t g = 0; g < map.groups; ++g) {
    typename Unit::Table table[ROWS][VARIANTS];
    const uint8_t* codes[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      codes[r] = map.codes + rows.of[first + r] * map.code_stride + g * map.width * BITS / 8;
      for (int v = 0; v < VARIANTS; ++v)
        table[r][v] = tables[(g * ROWS_AT_ONCE + first + r) * VARIANTS + v];
    }
    const auto meet = [&](int64_t u, const uint8_t* const* at) {
      for (int r = 0; r < ROWS; ++r) {
        const typename Unit::Index index = Unit::index(at[r]);
        typename Unit::Weights weights[VARIANTS];
        for (int v = 0; v < VARIANTS; ++v) weights[v] = Unit::look_up(index, table[r][v]);
        for (int e = 0; e < COUNT; ++e)
          total[r][e] = Unit::meet(weights[VARIANTS == 1 ? 0 : e],
                                   x[e] + (g * units + u) * Unit::COLUMNS, total[r][e]);
      }
    };
    for (int64_t u = 0; u < whole; ++u) {
      const uint8_t* at[ROWS];
      for (int r = 0; r < ROWS; ++r) at[r] = codes[r] + u * BYTES;
      meet(u, at);
    }
    if (rest > 0) {
      uint8_t last[ROWS][BYTES] = {};
      const uint8_t* at[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        std::memcpy(last[r], codes[r] + whole * BYTES, rest * BITS / 8);
        at[r] = last[r];
      }
      meet(whole, at);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int e = 0; e < COUNT; ++e) totals[e][place + r] = total[r][e];
}

// Four rows of a weight.
template <class Unit, int BITS>
void meet_four(const CodebookPart& map, const Rows4& rows, const typename Unit::Table* tables,
               const Inputs<Unit>& inputs, const Meeting& meeting, Floats (*totals)[LANES],
               int place) {
  const typename Unit::Input* x[MOST_ROWS] = {};
  for (int64_t e = 0; e < meeting.count(); ++e)
    x[e] = inputs.data + meeting.places[e] * inputs.stride;
  const int64_t units = inputs.units;
  if (meeting.variants == 4) {  // their tables fill the registers
    meet_rows<Unit, BITS, 2, 4, 4>(map, rows, 0, tables, units, x, totals, place);
    return meet_rows<Unit, BITS, 2, 4, 4>(map, rows, 2, tables, units, x, totals, place + 2);
  }
  switch (meeting.tokens) {
    case 1: return meet_rows<Unit, BITS, 4, 1, 1>(map, rows, 0, tables, units, x, totals, place);
    case 2: return meet_rows<Unit, BITS, 4, 1, 2>(map, rows, 0, tables, units, x, totals, place);
    case 3: return meet_rows<Unit, BITS, 4, 1, 3>(map, rows, 0, tables, units, x, totals, place);
    default: return meet_rows<Unit, BITS, 4, 1, 4>(map, rows, 0, tables, units, x, totals, place);
  }
}

// The sums of up to sixteen rows with one row of x, biased, to where they belong.
inline void put_out(const Lookups& lookups, const CodebookLinear* changes, int64_t place,
                    int64_t row, int64_t count, Floats sums) {
  const Step& step = lookups.step;
  const int64_t column = lookups.map.offset + row, x_row = lookups.rows[place];
  const CodebookPart* part = changes == nullptr ? nullptr : changes->part_of(column);
  if (part != nullptr) sums = sums + bias_of(part->bias, column - part->offset, count);
  if (!lookups.is_base) return add_to_out(step, x_row, column, count, sums);
  sums = sums + bias_of(lookups.map.bias, row, count);
  store_up_to(step.out_dtype, step.out, x_row * step.out_stride + column, sums, count);
}

// Sixteen rows of the weight, or what is left of it.
template <class Unit, int BITS>
void meet_group(const Lookups& lookups, const Inputs<Unit>& inputs, int64_t row,
                const Meeting& meeting) {
  typedef typename Unit::Table Table;
  const CodebookPart& map = lookups.map;
  const int64_t count = std::min<int64_t>(LANES, map.rows - row);
  const int64_t floats = map.groups * ROWS_AT_ONCE * MOST_ROWS * int64_t(sizeof(Table)) / 4;
  Table* tables = (Table*)scratch(TILE, floats);
  Floats totals[MOST_ROWS][LANES];
  for (int64_t r = 0; r < LANES; r += ROWS_AT_ONCE) {
    const Rows4 rows(row + std::min(r, count - 1), map.rows);
    put_together<Unit>(lookups, rows, meeting, tables);
    meet_four<Unit, BITS>(map, rows, tables, inputs, meeting, totals, int(r));
  }
  for (int64_t e = 0; e < meeting.count(); ++e)
    put_out(lookups, meeting.changes[meeting.variants == 1 ? 0 : e], meeting.places[e], row, count,
            sum_each(totals[e]));
}

template <class Unit, int BITS>
void meet_outputs(const Lookups& lookups, int64_t first, int64_t last) {
  const Inputs<Unit> inputs = Inputs<Unit>::of(lookups);
  const CodebookPart& map = lookups.map;
  const int64_t all = int64_t(lookups.meetings.size());
  for (int64_t from = 0, to; from < all; from = to) {
    for (to = from; to < all && lookups.meetings[to].places[0] < lookups.meetings[from].places[0] + PANEL;) ++to;
    for (int64_t row = first; row < last; row += LANES) {
      const int64_t next = std::min(row + LANES, map.rows) * map.code_stride;
      fetch_bytes(map.codes + next, std::min<int64_t>(LANES * map.code_stride, map.rows * map.code_stride - next));
      for (int64_t m = from; m < to; ++m) meet_group<Unit, BITS>(lookups, inputs, row, lookups.meetings[m]);
    }
  }
}

template <int BITS>
void meet_outputs(const Lookups& lookups, int64_t first, int64_t last) {
#if defined(TSUGIKI_CODEBOOK_PAIRS)
  if (lookups.step.dtype == BFLOAT16) return meet_outputs<PairUnit<BITS>, BITS>(lookups, first, last);
#endif
  meet_outputs<FloatUnit<BITS>, BITS>(lookups, first, last);
}

void run(const Lookups& lookups) {
  const int64_t lines = (lookups.map.rows + OUTPUTS_IN_LINE - 1) / OUTPUTS_IN_LINE;
  const bool fork = lookups.cost() >= fork_from();
  const int64_t threads = lookups.step.threads;
  const int64_t slices = fork ? std::min(threads * SLICES_PER_THREAD, lines) : 1;
  parallel_for(slices, int(threads), fork, [&](int64_t i) {
    const int64_t first = lines * i / slices * OUTPUTS_IN_LINE;
    const int64_t last = std::min(lines * (i + 1) / slices * OUTPUTS_IN_LINE, lookups.map.rows);
    switch (lookups.map.bits) {
      case 2: return meet_outputs<2>(lookups, first, last);
      case 3: return meet_outputs<3>(lookups, first, last);
      default: return meet_outputs<4>(lookups, first, last);
    }
  });
}

uint64_t next_number() {
  static std::atomic<uint64_t> count{0};
  return ++count;
}

// Whether the variants change this base, in parts that sixteen rows from a multiple of 16 on belong to
// whole.
bool changes_of(const CodebookPart& base, const Apply& deltas) {
  bool fits = true;
  for_parts<CodebookLinear>(deltas, [&](int64_t, int64_t, const CodebookPart& part) {
    fits = fits && part.offset % LANES == 0 && part.offset + part.rows <= base.rows &&
           part.codes == base.codes + part.offset * base.code_stride;
  });
  return fits;
}

// The variant's linear of each row of x, null where it is the base's.
void meet_spans(const BaseLinear& call, const Apply* deltas, Meetings& meetings) {
  const int64_t variants = deltas == nullptr ? 0 : deltas->variants();
  for (int64_t s = 0; s < call.span_count; ++s)
    for (int64_t row = call.spans[s].start; row < call.spans[s].stop; ++row) {
      const CodebookLinear* changes = nullptr;
      for (int64_t v = 0; v < variants; ++v)
        if (deltas->spans[v].start <= row && row < deltas->spans[v].stop)
          changes = &deltas->linear<CodebookLinear>(v);
      meetings.add(row, changes);
    }
  meetings.end();
}

// One part of one variant, whatever indices it has, added to what is there.
void add_part(const Step& step, const CodebookLinear& linear, const CodebookPart& part,
              const Span& span) {
  Lookups lookups{step, part, false, {}, {}, next_number()};
  Meetings meetings(lookups);
  for (int64_t row = span.start; row < span.stop; ++row) meetings.add(row, &linear);
  meetings.end();
  run(lookups);
}

}  // namespace tsugiki

using namespace tsugiki;

extern "C" void tsugiki_codebook_apply(const Apply* call) {
  for (int64_t v = 0; v < call->variants(); ++v) {
    const CodebookLinear& linear = call->linear<CodebookLinear>(v);
    for (int64_t p = 0; p < linear.count; ++p)
      add_part(*call, linear, linear.parts[p], call->spans[v]);
  }
}

extern "C" void tsugiki_codebook_linear(const BaseLinear* call) {
  const bool together = call->deltas != nullptr && changes_of(*call->base, *call->deltas);
  Lookups lookups{call->step, *call->base, true, {}, {}, next_number()};
  Meetings meetings(lookups);
  meet_spans(*call, together ? call->deltas : nullptr, meetings);
  run(lookups);
  if (call->deltas != nullptr && !together) tsugiki_codebook_apply(call->deltas);
}
