// The kept columns of a mask, from a seed: docs/format.md 5.2, bit for bit what codecs/masks.py draws.
//
// A random word for every column of a tile (Philox-4x32-10: Salmon, Moraes, Dror, Shaw, SC'11); of
// each group of columns those with the smallest words are kept. Sixteen tiles are drawn at once,
// side by side in the lanes of plain loops that the compiler vectorises.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tsugiki {

constexpr int TILES = 16;
constexpr int64_t FEW = 3;    // kept columns up to which inserting one by one beats all else
constexpr int64_t SOME = 48;  // candidates up to which comparing all with all beats selecting
constexpr uint64_t ANY = uint64_t(1) << 32;  // a bound above every word

struct Lanes {
  uint32_t of[TILES];
};

// Mirrored by records.py. `kept` of every whole group of columns, `kept_of_rest` of the rest.
struct ColumnDraw {
  uint64_t seed;
  uint64_t identity;  // of the module
  int64_t tiles;
  int64_t columns;
  int64_t group_size;
  int64_t kept;
  int64_t kept_of_rest;

  int64_t groups() const { return columns / group_size; }
  int64_t rest() const { return columns % group_size; }
  int64_t kept_in_tile() const { return groups() * kept + (rest() ? kept_of_rest : 0); }
};

inline void philox(Lanes (&x)[4], uint64_t seed) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
    for (int l = 0; l < TILES; ++l) {
      const uint64_t p = uint64_t(0xD2511F53u) * x[0].of[l], q = uint64_t(0xCD9E8D57u) * x[2].of[l];
      const uint32_t x1 = x[1].of[l], x3 = x[3].of[l];
      x[0].of[l] = uint32_t(q >> 32) ^ x1 ^ key0;
      x[1].of[l] = uint32_t(q);
      x[2].of[l] = uint32_t(p >> 32) ^ x3 ^ key1;
      x[3].of[l] = uint32_t(p);
    }
}

// words[c]: the words of column c of tiles first, first + 1, ...; columns up to a multiple of 4.
void draw_words(const ColumnDraw& draw, int64_t first, Lanes* words) {
  for (int64_t c = 0; c < draw.columns; c += 4) {
    Lanes x[4];
    for (int l = 0; l < TILES; ++l) {
      x[0].of[l] = uint32_t(c / 4);
      x[1].of[l] = uint32_t(first + l);
      x[2].of[l] = uint32_t(draw.identity);
      x[3].of[l] = uint32_t(draw.identity >> 32);
    }
    philox(x, draw.seed);
    std::copy(x, x + 4, words + c);
  }
}

// The `kept` columns of [begin, begin + size) with the smallest words, in any order, for each tile l:
// columns[i].of[l]. Insertion into a list sorted by word; of equal words the lower column wins.
void keep_few(const Lanes* words, int64_t begin, int64_t size, int64_t kept, Lanes* columns) {
  Lanes least[FEW];
  for (int64_t i = 0; i < kept; ++i)
    for (int l = 0; l < TILES; ++l) least[i].of[l] = ~0u, columns[i].of[l] = ~0u;
  for (int64_t c = begin; c < begin + size; ++c) {
    Lanes word = words[c], column;
    for (int l = 0; l < TILES; ++l) column.of[l] = uint32_t(c);
    for (int64_t i = 0; i < kept; ++i)
      for (int l = 0; l < TILES; ++l) {
        const uint32_t w = least[i].of[l], k = columns[i].of[l];
        // a place that is still free holds the column ~0: it gives way to the largest word as well
        const bool smaller = word.of[l] < w || (word.of[l] == w && column.of[l] < k);
        least[i].of[l] = smaller ? word.of[l] : w, word.of[l] = smaller ? w : word.of[l];
        columns[i].of[l] = smaller ? column.of[l] : k, column.of[l] = smaller ? k : column.of[l];
      }
  }
}

// The columns of one group of one tile whose words are below a bound, ascending, with their words.
class Candidates {
 public:
  explicit Candidates(int64_t most)
      : words(most + TILES), columns(most + TILES), ranks(most + TILES) {}

  // Returns how many there are.
  int64_t gather(const Lanes* drawn, int lane, int64_t begin, int64_t size, uint64_t bound) {
    count = 0;
    for (int64_t c = begin; c < begin + size; ++c) {
      const uint32_t word = drawn[c].of[lane];
      words[count] = word, columns[count] = uint32_t(c);
      count += word < bound;
    }
    return count;
  }

  // Writes the `kept` columns with the smallest words, ascending; of equal words the lower column's.
  void keep(int64_t kept, uint16_t* out) {
    if (count <= SOME)
      rank();
    else
      mark(kept);
    for (int64_t i = 0, n = 0; n < kept; ++i) {
      out[n] = uint16_t(columns[i]);
      n += ranks[i] < kept;
    }
  }

 private:
  std::vector<uint32_t> words, columns, ranks;
  std::vector<uint64_t> keys;
  int64_t count = 0;

  // ranks[i]: how many candidates come before i.
  void rank() {
    const int64_t padded = (count + TILES - 1) / TILES * TILES;
    std::fill_n(ranks.begin(), padded, 0);
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t word = words[j];
      for (int64_t i = 0; i < padded; ++i)
        ranks[i] += word < words[i] || (word == words[i] && j < i);
    }
  }

  // ranks[i]: 0 for the `kept` first, `kept` for the others.
  void mark(int64_t kept) {
    keys.resize(count);
    for (int64_t i = 0; i < count; ++i) keys[i] = uint64_t(words[i]) << 32 | uint64_t(i);
    std::nth_element(keys.begin(), keys.begin() + kept - 1, keys.end());
    const uint64_t last = keys[kept - 1];
    for (int64_t i = 0; i < count; ++i)
      ranks[i] = (uint64_t(words[i]) << 32 | uint64_t(i)) <= last ? 0 : uint32_t(kept);
  }
};

// Words are uniform, so a bound with room for some more than are kept nearly always leaves enough.
uint64_t first_bound(int64_t size, int64_t kept) {
  const double wanted = double(kept) + 3.0 * std::sqrt(double(kept)) + 1.0;
  return wanted < double(size) ? uint64_t(wanted / double(size) * 0x1p32) : ANY;
}

// Sixteen tiles from `first` on; those beyond the last are drawn and dropped.
class TileDraw {
 public:
  explicit TileDraw(const ColumnDraw& draw)
      : draw(draw), words((draw.columns + 3) / 4 * 4), few(FEW), found(draw.columns) {}

  void into(int64_t first, uint16_t* out) {
    draw_words(draw, first, words.data());
    int64_t at = 0;
    for (int64_t g = 0; g < draw.groups(); ++g, at += draw.kept)
      keep(g * draw.group_size, draw.group_size, draw.kept, out + at, first);
    if (draw.rest())
      keep(draw.groups() * draw.group_size, draw.rest(), draw.kept_of_rest, out + at, first);
  }

 private:
  const ColumnDraw& draw;
  std::vector<Lanes> words, few;
  Candidates found;

  // The kept columns of one group, ascending; `out`: their place in the first row of all.
  void keep(int64_t begin, int64_t size, int64_t kept, uint16_t* out, int64_t first) {
    const uint64_t bound = first_bound(size, kept);
    if (kept <= FEW) keep_few(words.data(), begin, size, kept, few.data());
    for (int l = 0; l < TILES && first + l < draw.tiles; ++l) {
      uint16_t* row = out + (first + l) * draw.kept_in_tile();
      if (kept <= FEW) {
        for (int64_t i = 0; i < kept; ++i) row[i] = uint16_t(few[i].of[l]);
        std::sort(row, row + kept);
        continue;
      }
      if (found.gather(words.data(), l, begin, size, bound) < kept)
        found.gather(words.data(), l, begin, size, ANY);
      found.keep(kept, row);
    }
  }
};

}  // namespace tsugiki

using namespace tsugiki;

// out: [tiles, kept_in_tile]
extern "C" void tsugiki_draw_columns(const ColumnDraw* draw, uint16_t* out) {
  TileDraw sixteen(*draw);
  for (int64_t first = 0; first < draw->tiles; first += TILES) sixteen.into(first, out);
}
