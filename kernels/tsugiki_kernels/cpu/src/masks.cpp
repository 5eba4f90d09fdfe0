// The kept columns of a mask, from a seed: docs/format.md 5.2, bit for bit what codecs/masks.py draws.
//
// A random word for every column of a tile (Philox-4x32-10: Salmon, Moraes, Dror, Shaw, SC'11); of
// each group of columns those with the smallest words are kept. As many tiles as a vector has lanes
// are drawn side by side, and group by group: its words are read again from the cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tsugiki {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;  // bytes of a vector
#elif defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
constexpr int TILES = WIDTH / 4;  // drawn side by side, a lane for each
constexpr int FEW = 16;  // kept columns up to which one pass over the words finds the last of them
constexpr int64_t SOME = 48;  // candidates up to which comparing all with all beats selecting
constexpr uint64_t ANY = uint64_t(1) << 32;  // a bound above every word

typedef uint32_t Words __attribute__((vector_size(WIDTH)));  // one of each tile
typedef uint64_t Wide __attribute__((vector_size(WIDTH)));   // of every second tile

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

inline Wide wide(uint64_t value) { return Wide{} + value; }
inline Words smaller(Words a, Words b) { return a < b ? a : b; }
inline Words larger(Words a, Words b) { return a < b ? b : a; }

// The products of the low halves.
inline Wide multiply(Wide a, uint32_t b) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)wide(b));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)wide(b));
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)wide(b));
#else
  return (a & 0xffffffffu) * wide(b);
#endif
}

// Products have 64 bits, so each word keeps a lane of as many to itself: the low half. What is in the
// high half does not matter until the end.
inline void philox(Wide (&x)[4], uint64_t seed) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const Wide p = multiply(x[0], 0xD2511F53u), q = multiply(x[2], 0xCD9E8D57u);
    x[0] = (q >> 32) ^ x[1] ^ wide(key0);
    x[1] = q;
    x[2] = (p >> 32) ^ x[3] ^ wide(key1);
    x[3] = p;
  }
}

// words[0 .. 3]: those of the columns 4 * block ... of the tiles first, first + 1, ...
inline void draw_block(const ColumnDraw& draw, int64_t first, int64_t block, Words* words) {
  Wide tile = wide(first);
  for (int i = 0; i < TILES / 2; ++i) tile[i] += 2 * i;
  Wide even[4] = {wide(block), tile, wide(draw.identity), wide(draw.identity >> 32)};
  Wide odd[4] = {even[0], even[1] + 1, even[2], even[3]};
  philox(even, draw.seed);
  philox(odd, draw.seed);
  for (int i = 0; i < 4; ++i) words[i] = (Words)((even[i] & 0xffffffffu) | odd[i] << 32);
}

// For each tile the last word that is kept and the first that is not.
struct Edge {
  Words last, next;
};

template <int KEPT>
Edge find_edge(const Words* words, int64_t size) {
  Words least[KEPT + 1];  // ascending
  std::memset(least, 0xff, sizeof least);
  for (int64_t c = 0; c < size; ++c) {
    Words word = words[c];
#pragma GCC unroll 17
    for (int i = 0; i <= KEPT; ++i) {
      const Words passed = larger(word, least[i]);
      least[i] = smaller(word, least[i]);
      word = passed;
    }
  }
  return {least[KEPT - 1], least[KEPT]};
}

using FindEdge = Edge (*)(const Words*, int64_t);
constexpr FindEdge FIND_EDGE[FEW + 1] = {
    nullptr,       find_edge<1>,  find_edge<2>,  find_edge<3>,  find_edge<4>,  find_edge<5>,
    find_edge<6>,  find_edge<7>,  find_edge<8>,  find_edge<9>,  find_edge<10>, find_edge<11>,
    find_edge<12>, find_edge<13>, find_edge<14>, find_edge<15>, find_edge<16>,
};

// Bit c of a tile: whether words[c] is at most `last`, of up to 32 words.
inline Words at_most(Words last, const Words* words, int64_t size) {
  Words bits = {};
  for (int64_t c = 0; c < size; ++c) bits |= (Words)(words[c] <= last) & uint32_t(1) << c;
  return bits;
}

// The columns of one group of one tile whose words are below a bound, ascending, with their words.
class Candidates {
 public:
  explicit Candidates(int64_t most)
      : words(most + TILES), columns(most + TILES), ranks(most + TILES) {}

  // Returns how many there are.
  int64_t gather(const Words* drawn, int lane, int64_t begin, int64_t size, uint64_t bound) {
    count = 0;
    for (int64_t c = 0; c < size; ++c) {
      const uint32_t word = drawn[c][lane];
      words[count] = word, columns[count] = uint32_t(begin + c);
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

// TILES tiles from `first` on; those beyond the last are drawn and dropped.
class TileDraw {
 public:
  explicit TileDraw(const ColumnDraw& draw)
      : draw(draw), drawn(draw.group_size + BITS), found(draw.group_size) {}

  void into(int64_t first, uint16_t* out) {
    out += first * draw.kept_in_tile();
    for (int64_t g = 0; g < draw.groups(); ++g)
      keep(g * draw.group_size, draw.group_size, draw.kept, first, out + g * draw.kept);
    if (draw.rest())
      keep(draw.groups() * draw.group_size, draw.rest(), draw.kept_of_rest, first,
           out + draw.groups() * draw.kept);
  }

 private:
  static constexpr int64_t BITS = 64;

  const ColumnDraw& draw;
  std::vector<Words> drawn;  // of one group, with room for whole blocks and whole BITS
  Candidates found;

  // The kept columns of one group, ascending; `out`: their place in the first of the rows.
  void keep(int64_t begin, int64_t size, int64_t kept, int64_t first, uint16_t* out) {
    const Words* words = drawn.data() + begin % 4;  // of `begin` itself: blocks are of four columns
    for (int64_t block = begin / 4; 4 * block < begin + size; ++block)
      draw_block(draw, first, block, drawn.data() + 4 * (block - begin / 4));
    const int64_t tiles = std::min<int64_t>(TILES, draw.tiles - first);
    if (kept > FEW || !keep_few(words, begin, size, kept, tiles, out))
      keep_many(words, begin, size, kept, tiles, out);
  }

  // False, and nothing written: some tile's edge lies between equal words.
  bool keep_few(const Words* words, int64_t begin, int64_t size, int64_t kept, int64_t tiles,
                uint16_t* out) const {
    const Edge edge = FIND_EDGE[kept](words, size);
    const auto equal = edge.last == edge.next;
    for (int l = 0; l < TILES; ++l)
      if (equal[l]) return false;
    const int64_t stride = draw.kept_in_tile();
    int64_t written[TILES] = {};
    const auto half = [&](int64_t c) {
      return at_most(edge.last, words + c, std::min(BITS / 2, size - c));
    };
    for (int64_t c = 0; c < size; c += BITS) {
      const Words low = half(c), high = half(c + BITS / 2);
      for (int64_t l = 0; l < tiles; ++l)
        for (uint64_t bits = uint64_t(high[l]) << 32 | low[l]; bits; bits &= bits - 1)
          out[l * stride + written[l]++] = uint16_t(begin + c + __builtin_ctzll(bits));
    }
    return true;
  }

  void keep_many(const Words* words, int64_t begin, int64_t size, int64_t kept, int64_t tiles,
                 uint16_t* out) {
    const uint64_t bound = first_bound(size, kept);
    for (int64_t l = 0; l < tiles; ++l, out += draw.kept_in_tile()) {
      if (found.gather(words, l, begin, size, bound) < kept)
        found.gather(words, l, begin, size, ANY);
      found.keep(kept, out);
    }
  }
};

}  // namespace tsugiki

using namespace tsugiki;

// out: [tiles, kept_in_tile]
extern "C" void tsugiki_draw_columns(const ColumnDraw* draw, uint16_t* out) {
  TileDraw tiles(*draw);
  for (int64_t first = 0; first < draw->tiles; first += TILES) tiles.into(first, out);
}
