// Linears that are looked up: out = x W^T + bias, where W[r, c] is the entry that an index names in
// the codebook of row r and of the stretch of c; a variant's rows of x meet codebooks of their own.
//
// Memory is read for the indices, so they are read once for all rows of x: a thread takes sixteen
// rows of the weight at a time, and all rows of x meet them while they lie in the first-level
// cache. Their codebooks, the base's with a variant's changes added, are put together in float32,
// brought into registers, and looked up by permutations (codebook_units.h).
//
// Lane l of an output sums what a unit has in that lane, units and stretches in order; the lanes
// are summed at the end (sum_each). So an output's bits depend on its row of x and its weights
// alone.

#include <atomic>

#include "codebook_meetings.h"
#include "slices.h"

namespace tsugiki {

// Mirrored by codebooks.py.
struct BaseLinear {
  Step step;
  const CodebookPart* base;
  const Span* spans;  // the rows to compute; spans never overlap
  int64_t span_count;
  const Apply* deltas;  // changes of the base's codebooks; null: none
};

// Sixteen rows of a weight, the last one again where there are fewer. A unit at the end of a row
// may reach beyond it, where x is zero: the last row of all is read from a copy with room behind.
struct Group {
  int64_t first, count;
  const uint8_t* codes[LANES];

  Group(const CodebookPart& map, int64_t row)
      : first(row), count(std::min<int64_t>(LANES, map.rows - row)) {
    for (int64_t r = 0; r < LANES; ++r)
      codes[r] = map.codes + (row + std::min(r, count - 1)) * map.code_stride;
    if (row + count < map.rows) return;
    uint8_t* last = (uint8_t*)scratch(REST, map.code_stride / 4 + LANES);
    std::memcpy(last, map.codes + (map.rows - 1) * map.code_stride, map.code_stride);
    for (int64_t r = count - 1; r < LANES; ++r) codes[r] = last;
  }
};

// What a variant changes in a group: nothing, or a part.
struct Change {
  const CodebookPart* part = nullptr;
  int64_t first = 0;   // row of the part
  float scale[LANES];  // of the part's values, by row

  void find(const CodebookLinear* linear, int64_t output, int64_t count) {
    part = linear == nullptr ? nullptr : linear->part_of(output);
    if (part == nullptr) return;
    first = output - part->offset;
    Floats steps = splat(part->gain);
    if (part->step != nullptr) steps = load_up_to(FLOAT16, part->step, first, count) * steps;
    store(scale, steps);
    fetch_next();
  }

 private:
  void fetch_next() const {
    const int64_t row_bytes = (part->groups << part->bits) * (part->kind == BYTES ? 1 : 2);
    const int64_t next = first + LANES, rows = std::min<int64_t>(LANES, part->rows - next);
    fetch_bytes((const char*)part->values + next * row_bytes, rows * row_bytes);
  }
};

// tables[stretch][row][variant] of the codebooks of a group: the base's, with what a variant
// changes.
template <class Unit, int BITS>
void put_together(const Lookups& lookups, const Group& group, const Meeting& meeting,
                  typename Unit::Table* tables) {
  const CodebookPart& map = lookups.map;
  Change changes[MOST_VARIANTS];
  for (int v = 0; v < meeting.variants; ++v)
    changes[v].find(meeting.changes[v], map.offset + group.first, group.count);
  for (int64_t lane = 0; lane < LANES; ++lane) {
    const int64_t r = std::min(lane, group.count - 1);
    for (int64_t g = 0; g < map.groups; ++g) {
      typename Unit::Table* to = tables + (g * LANES + lane) * meeting.variants;
      const Floats base = lookups.is_base ? values_of<BITS>(map, group.first + r, g) : zeros();
      for (int v = 0; v < meeting.variants; ++v) {
        const Change& change = changes[v];
        if (change.part == nullptr) {
          to[v] = Unit::table(base);
          continue;
        }
        const Floats values = values_of<BITS>(*change.part, change.first + r, g);
        to[v] = Unit::table(fma(values, splat(change.scale[r]), base));
      }
    }
  }
}

// totals[e][r]: the lanes of row r of a group times row e of x, for ROWS rows from `first` on.
template <class Unit, int BITS, int ROWS, int VARIANTS, int COUNT>
inline void meet_rows(const CodebookPart& map, const Group& group, int64_t first,
                      const typename Unit::Table* tables, int64_t units,
                      const typename Unit::Input* const* x, Floats (*totals)[LANES]) {
  constexpr int64_t BYTES_OF_UNIT = Unit::COLUMNS * BITS / 8;
  Floats total[ROWS][COUNT];
  for (int r = 0; r < ROWS; ++r)
    for (int e = 0; e < COUNT; ++e) total[r][e] = zeros();
  for (int64_t g = 0; g < map.groups; ++g) {
    typename Unit::Table table[ROWS][VARIANTS];
    const uint8_t* codes[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      codes[r] = group.codes[first + r] + g * map.width * BITS / 8;
      for (int v = 0; v < VARIANTS; ++v)
        table[r][v] = tables[(g * LANES + first + r) * VARIANTS + v];
    }
    const int64_t start = g * units * Unit::COLUMNS;
    for (int64_t u = 0; u < units; ++u) {
      typename Unit::Weights inputs[COUNT];
      for (int e = 0; e < COUNT; ++e) inputs[e] = Unit::input(x[e] + start + u * Unit::COLUMNS);
      for (int r = 0; r < ROWS; ++r) {
        const typename Unit::Index index = Unit::index(codes[r] + u * BYTES_OF_UNIT);
        typename Unit::Weights weights[VARIANTS];
        for (int v = 0; v < VARIANTS; ++v) weights[v] = Unit::look_up(index, table[r][v]);
        for (int e = 0; e < COUNT; ++e)
          total[r][e] = Unit::meet(weights[VARIANTS == 1 ? 0 : e], inputs[e], total[r][e]);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int e = 0; e < COUNT; ++e) totals[e][first + r] = total[r][e];
}

template <class Unit, int BITS, int ROWS, int VARIANTS, int COUNT>
void meet_all_rows(const CodebookPart& map, const Group& group, const typename Unit::Table* tables,
                   int64_t units, const typename Unit::Input* const* x, Floats (*totals)[LANES]) {
  for (int64_t first = 0; first < LANES; first += ROWS)
    meet_rows<Unit, BITS, ROWS, VARIANTS, COUNT>(map, group, first, tables, units, x, totals);
}

// As many rows at once as leave room in the registers for sums, codebooks and x.
template <class Unit, int BITS>
void meet_codes(const CodebookPart& map, const Group& group, const typename Unit::Table* tables,
                const Inputs<Unit>& inputs, const Meeting& meeting, Floats (*totals)[LANES]) {
  const typename Unit::Input* x[MOST_ROWS];
  for (int64_t e = 0; e < MOST_ROWS; ++e)
    x[e] = inputs.data + meeting.places[std::min(e, meeting.count() - 1)] * inputs.stride;
  const int64_t units = inputs.units;
  if (meeting.variants == MOST_VARIANTS)
    return meet_all_rows<Unit, BITS, 2, 4, 4>(map, group, tables, units, x, totals);
  switch (meeting.tokens) {
    case 1: return meet_all_rows<Unit, BITS, 8, 1, 1>(map, group, tables, units, x, totals);
    case 2: return meet_all_rows<Unit, BITS, 8, 1, 2>(map, group, tables, units, x, totals);
    case 3:
    case 4: return meet_all_rows<Unit, BITS, 4, 1, 4>(map, group, tables, units, x, totals);
  }
  meet_all_rows<Unit, BITS, 4, 1, 4>(map, group, tables, units, x, totals);
  meet_all_rows<Unit, BITS, 4, 1, 4>(map, group, tables, units, x + 4, totals + 4);
}

// The sums of up to sixteen rows with one row of x, biased, to where they belong.
inline void put_out(const Lookups& lookups, const CodebookLinear* changes, int64_t place,
                    const Group& group, Floats sums) {
  const Step& step = lookups.step;
  const int64_t row = group.first, count = group.count;
  const int64_t column = lookups.map.offset + row, x_row = lookups.rows[place];
  const CodebookPart* part = changes == nullptr ? nullptr : changes->part_of(column);
  if (part != nullptr) sums = sums + bias_of(part->bias, column - part->offset, count);
  if (!lookups.is_base) return add_to_out(step, x_row, column, count, sums);
  sums = sums + bias_of(lookups.map.bias, row, count);
  store_up_to(step.out_dtype, step.out, x_row * step.out_stride + column, sums, count);
}

template <class Unit, int BITS>
void meet_group(const Lookups& lookups, const Inputs<Unit>& inputs, const Group& group,
                const Meeting& meeting) {
  typedef typename Unit::Table Table;
  const CodebookPart& map = lookups.map;
  const int64_t floats = map.groups * LANES * MOST_VARIANTS * int64_t(sizeof(Table)) / 4;
  Table* tables = (Table*)scratch(TILE, floats);
  Floats totals[MOST_ROWS][LANES];
  put_together<Unit, BITS>(lookups, group, meeting, tables);
  meet_codes<Unit, BITS>(map, group, tables, inputs, meeting, totals);
  for (int64_t e = 0; e < meeting.count(); ++e)
    put_out(lookups, meeting.changes[meeting.variants == 1 ? 0 : e], meeting.places[e], group,
            sum_each(totals[e]));
}

template <class Unit, int BITS>
void meet_outputs(const Lookups& lookups, int64_t first, int64_t last) {
  const Inputs<Unit> inputs = Inputs<Unit>::of(lookups);
  const CodebookPart& map = lookups.map;
  const int64_t all = int64_t(lookups.meetings.size());
  for (int64_t from = 0, to; from < all; from = to) {
    const int64_t end = lookups.meetings[from].places[0] + PANEL;
    for (to = from; to < all && lookups.meetings[to].places[0] < end;) ++to;
    for (int64_t row = first; row < last; row += LANES) {
      const Group group(map, row);
      const int64_t next = row + group.count, rows = std::min<int64_t>(LANES, map.rows - next);
      fetch_bytes(map.codes + next * map.code_stride, rows * map.code_stride);
      for (int64_t m = from; m < to; ++m)
        meet_group<Unit, BITS>(lookups, inputs, group, lookups.meetings[m]);
    }
  }
}

template <int BITS>
void meet_outputs(const Lookups& lookups, int64_t first, int64_t last) {
#if defined(TSUGIKI_CODEBOOK_PAIRS)
  if (lookups.step.dtype == BFLOAT16)
    return meet_outputs<PairUnit<BITS>, BITS>(lookups, first, last);
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

// Whether the variants change this base, in parts of which sixteen rows from a multiple of 16 on
// are one's alone.
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
