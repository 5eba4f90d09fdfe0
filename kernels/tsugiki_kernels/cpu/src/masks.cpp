// The kept columns of a mask, from a seed: docs/format.md 5.2, bit for bit what codecs/masks.py draws.
//
// A random word for every column of a tile (Philox-4x32-10: Salmon, Moraes, Dror, Shaw, SC'11); of
// each group of columns those with the smallest words are kept. Sixteen tiles are drawn at once,
// side by side in the lanes of plain loops that the compiler vectorises.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace tsugiki {

constexpr int TILES = 16;
constexpr int64_t FEW = 16;  // kept columns up to which inserting one by one beats selecting

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

// The same for any number of them.
void keep_many(const Lanes* words, int64_t begin, int64_t size, int64_t kept, Lanes* columns) {
  std::vector<uint64_t> keys(size);
  for (int l = 0; l < TILES; ++l) {
    for (int64_t i = 0; i < size; ++i)
      keys[i] = uint64_t(words[begin + i].of[l]) << 32 | uint64_t(begin + i);
    std::nth_element(keys.begin(), keys.begin() + kept - 1, keys.end());
    for (int64_t i = 0; i < kept; ++i) columns[i].of[l] = uint32_t(keys[i]);
  }
}

// Sixteen tiles from `first` on; those beyond the last are drawn and dropped.
class TileDraw {
 public:
  explicit TileDraw(const ColumnDraw& draw)
      : draw(draw), words((draw.columns + 3) / 4 * 4), columns(draw.kept_in_tile()) {}

  void into(int64_t first, uint16_t* out) {
    draw_words(draw, first, words.data());
    int64_t at = 0;
    for (int64_t g = 0; g < draw.groups(); ++g, at += draw.kept)
      keep(g * draw.group_size, draw.group_size, draw.kept, out, first, at);
    if (draw.rest())
      keep(draw.groups() * draw.group_size, draw.rest(), draw.kept_of_rest, out, first, at);
  }

 private:
  const ColumnDraw& draw;
  std::vector<Lanes> words, columns;

  void keep(int64_t begin, int64_t size, int64_t kept, uint16_t* out, int64_t first, int64_t at) {
    (kept <= FEW ? keep_few : keep_many)(words.data(), begin, size, kept, columns.data());
    for (int64_t l = 0; l < TILES && first + l < draw.tiles; ++l) {
      uint16_t* row = out + (first + l) * draw.kept_in_tile() + at;
      for (int64_t i = 0; i < kept; ++i) row[i] = uint16_t(columns[i].of[l]);
      std::sort(row, row + kept);
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
