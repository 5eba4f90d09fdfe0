// Which rows of x meet the same indices in one call, and how these rows are laid out for it.
#pragma once

#include "codebook_units.h"

namespace tsugiki {

constexpr int MOST_ROWS = 8;      // of x that meet the same indices
constexpr int MOST_VARIANTS = 4;  // theirs, when each has one row
constexpr int64_t PANEL = 32;     // rows of x, which stay in the second-level cache

// Rows of x that meet the same indices: `tokens` of each of `variants`, one or the other being 1.
struct Meeting {
  int variants, tokens;
  int64_t places[MOST_ROWS];                     // among the rows that are laid out
  const CodebookLinear* changes[MOST_VARIANTS];  // of each variant; null: the base

  int64_t count() const { return variants * tokens; }
};

// What one call computes.
struct Lookups {
  const Step& step;
  const CodebookPart& map;  // its indices, and where its outputs begin
  bool is_base;             // its values count, and sums go to out; else they are added there
  std::vector<int64_t> rows;  // of x, in the order of the meetings
  std::vector<Meeting> meetings;
  uint64_t number;  // tells the threads when a call is another one

  int64_t cost() const {
    const int64_t groups = (map.rows + LANES - 1) / LANES;
    return groups * step.inputs * int64_t(meetings.size()) * 2;
  }
};

// Rows of x in order become meetings: up to eight of a variant's, or one each of four variants.
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
      const size_t count = singles_.size() >= MOST_VARIANTS ? MOST_VARIANTS : 1;
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

// The rows of x as a unit reads them, stretch after stretch, each filled up with zeros. Every
// thread that works on a call has its own: to fetch what another core wrote takes longer.
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

}  // namespace tsugiki
