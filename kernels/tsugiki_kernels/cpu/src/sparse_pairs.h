// The tile form for bfloat16 activations where the processor has a product of pairs: two kept
// columns of 16 rows meet one token at a time. Sums of every other pair, in order, the second column
// of a pair before the first; the same for every number of tokens.
#pragma once

#include "pair_weights.h"
#include "sparse_finish.h"

namespace tsugiki {

#if defined(TSUGIKI_PAIRS)

// The x of a block of several tokens, and of two of its columns -> TOKENS pairs.
template <int TOKENS>
struct PairedX {
  const char* x;
  explicit PairedX(const TokenBlock& block) : x((const char*)block.data) {}

  void operator()(int64_t first, int64_t second, uint32_t* to) const {
    __m128i a = _mm_setzero_si128(), b = _mm_setzero_si128();
    std::memcpy(&a, x + first * TOKENS * 2, TOKENS * 2);
    std::memcpy(&b, x + second * TOKENS * 2, TOKENS * 2);
    const __m128i low = _mm_unpacklo_epi16(a, b), high = _mm_unpackhi_epi16(a, b);
    std::memcpy(to, &low, std::min(TOKENS, 4) * 4);
    if (TOKENS == 8) std::memcpy(to + 4, &high, 16);
  }
};

// total + the products of a pair of bfloat16 with 16 pairs of weights. (From intrinsics the
// compiler makes a load of the pair into 512 bits, of which the core has one a cycle.)
inline __m512 add_products(__m512 total, __m512bh weights, const uint32_t* pair) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(total) : "v"(weights), "m"(*pair));
  return total;
}

// One block of tokens meets groups of 16 rows one after the other; tokens of several variants, each
// the codes of its own. While the pairs of one group meet their weights, those of the next are
// gathered: the one is work for the vector units, the other for the rest of the core.
template <int BITS, int VARIANTS, int EACH, bool NEIGHBOURS>
struct PairBlock {
  static constexpr int TOKENS = VARIANTS * EACH;
  const Step& step;
  const SparsePart* const* parts;  // VARIANTS of them, which share the columns
  const TokenBlock& block;
  const SparsePart& part = *parts[0];
  const PairDecoder<BITS> decode{part.zero};
  const PairedX<TOKENS> pair_up{block};
  const int64_t whole = part.kept / 2;  // pairs; an odd last column meets zeros
  // from one column's codes to the next's
  const int64_t next = NEIGHBOURS ? 2 * BITS : part.rows_per_mask * BITS / 8;

  void run(int64_t first, int64_t last) const {
    const int64_t size = (part.kept + 1) / 2 * TOKENS, steps = padded(last - first);
    float* room = scratch(TILE, VARIANTS * steps + 2 * size);
    Finish finish[VARIANTS];
    for (int v = 0; v < VARIANTS; ++v, room += steps)
      finish[v].begin(step, *parts[v], block.first_row + v * EACH, first, last, room);
    uint32_t *now = (uint32_t*)room, *later = now + size;
    gather(group_of(part, first).columns, now);
    for (int64_t g = first; g < last; ++g, std::swap(now, later)) {
      Floats sums[TOKENS];
      meet(g, now, group_of(part, std::min(g + 1, last - 1)).columns, later, sums);
      unrolled<VARIANTS>([&](auto v) __attribute__((always_inline)) {
        Floats own[EACH];
        unrolled<EACH>([&](auto t) __attribute__((always_inline)) { own[t] = sums[v * EACH + t]; });
        finish[v](g, VARIANTS == 1 ? block.tokens : EACH, own);
      });
    }
  }

 private:
  struct Totals {
    __m512 of[TOKENS];
  };

  void gather_last(const uint16_t* column, uint32_t* to) const {
    pair_up(*column, *column, to);
    for (int t = 0; t < TOKENS; ++t) to[t] &= 0xffff;
  }

  void gather(const uint16_t* columns, uint32_t* to) const {
    for (int64_t p = 0; p < whole; ++p, columns += 2, to += TOKENS)
      pair_up(columns[0], columns[1], to);
    if (part.kept % 2) gather_last(columns, to);
  }

  // The sums of a group; the pairs of `columns`, another group's, go to `to`.
  // Pairs 0, 2, 4 ... and 1, 3, 5 ... are summed apart, for the next need not wait for the last.
  inline __attribute__((always_inline)) void meet(int64_t group, const uint32_t* pairs,
                                                  const uint16_t* columns, uint32_t* to,
                                                  Floats (&sums)[TOKENS]) const {
    // of their own, for what is stored might else be these
    const PairDecoder<BITS> decode = this->decode;
    const PairedX<TOKENS> pair_up = this->pair_up;
    const int64_t next = this->next, kept = part.kept;
    Totals even = {}, odd = {};
    const uint8_t* codes[VARIANTS];
    unrolled<VARIANTS>([&](auto v) __attribute__((always_inline)) {
      codes[v] = group_of(*parts[v], group).codes;
    });
    int64_t at = 0;  // of the pair's codes
    const auto add = [&](Totals total) __attribute__((always_inline)) {
      __m512bh weights;
      unrolled<TOKENS>([&](auto t) __attribute__((always_inline)) {
        if (t % EACH == 0) weights = decode_pair<NEIGHBOURS>(decode, codes[t / EACH] + at, next);
        total.of[t] = add_products(total.of[t], weights, pairs + t);
      });
      at += 2 * next, pairs += TOKENS;
      pair_up(columns[0], columns[1], to), columns += 2, to += TOKENS;
      return total;
    };
    const auto add_last = [&](Totals total) __attribute__((always_inline)) {
      __m512bh weights;
      unrolled<TOKENS>([&](auto t) __attribute__((always_inline)) {
        if (t % EACH == 0) weights = decode(codes[t / EACH] + at, codes[t / EACH] + at);
        total.of[t] = add_products(total.of[t], weights, pairs + t);
      });
      gather_last(columns, to);
      return total;
    };
    for (int64_t p = 0; p < kept / 4; ++p) even = add(even), odd = add(odd);
    if (kept % 4 >= 2) even = add(even);
    if (kept % 4 == 1) even = add_last(even);
    if (kept % 4 == 3) odd = add_last(odd);
    unrolled<TOKENS>([&](auto t) __attribute__((always_inline)) {
      sums[t] = {_mm512_add_ps(even.of[t], odd.of[t])};
    });
  }
};

// x of two columns of one token in all lanes, by two loads: words of general registers become
// vectors more slowly.
inline __m512bh pair_of(const uint16_t* first, const uint16_t* second) {
  __m512i pair;
  asm("vpbroadcastw %1, %0\n\tvpbroadcastw %2, %0%{%3%}"
      : "=&v"(pair)
      : "m"(*first), "m"(*second), "Yk"((__mmask32)0xaaaaaaaa));
  return (__m512bh)pair;
}

// The same sums for one or two tokens, which need not be gathered. Two groups at once hide the latency
// of the products.
template <int BITS, int TOKENS, int GROUPS, bool NEIGHBOURS>
struct PairRows {
  const Step& step;
  const SparsePart& part;
  const TokenBlock& block;
  const PairDecoder<BITS> decode{part.zero};
  const int64_t next = NEIGHBOURS ? 2 * BITS : part.rows_per_mask * BITS / 8;

  // Returns where too few groups are left.
  int64_t run(int64_t first, int64_t last, const Finish& finish) const {
    for (; first + GROUPS <= last; first += GROUPS) {
      Floats sums[GROUPS][TOKENS];
      meet(first, sums);
      for (int g = 0; g < GROUPS; ++g) finish(first + g, TOKENS, sums[g]);
    }
    return first;
  }

 private:
  inline __attribute__((always_inline)) void meet(int64_t first,
                                                  Floats (&sums)[GROUPS][TOKENS]) const {
    const uint16_t* x = (const uint16_t*)step.x + block.first_row * step.x_stride;
    const int64_t x_stride = step.x_stride;
    const uint16_t zero = 0;
    __m512 even[GROUPS][TOKENS], odd[GROUPS][TOKENS];
    Group at[GROUPS];
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; ++g) {
      at[g] = group_of(part, first + g);
#pragma GCC unroll 2
      for (int t = 0; t < TOKENS; ++t) even[g][t] = odd[g][t] = _mm512_setzero_ps();
    }
    const auto add = [&](__m512(&total)[GROUPS][TOKENS]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; ++g) {
        const __m512bh weights = decode_pair<NEIGHBOURS>(decode, at[g].codes, next);
        const uint16_t *one = x + at[g].columns[0], *two = x + at[g].columns[1];
#pragma GCC unroll 2
        for (int t = 0; t < TOKENS; ++t)
          total[g][t] = _mm512_dpbf16_ps(total[g][t], weights,
                                         pair_of(one + t * x_stride, two + t * x_stride));
        at[g].codes += 2 * next, at[g].columns += 2;
      }
    };
    const auto add_last = [&](__m512(&total)[GROUPS][TOKENS]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; ++g)
#pragma GCC unroll 2
        for (int t = 0; t < TOKENS; ++t)
          total[g][t] = _mm512_dpbf16_ps(total[g][t], decode(at[g].codes, at[g].codes),
                                         pair_of(x + at[g].columns[0] + t * x_stride, &zero));
    };
    for (int64_t p = 0; p < part.kept / 4; ++p) add(even), add(odd);
    if (part.kept % 4 >= 2) add(even);
    if (part.kept % 4 == 1) add_last(even);
    if (part.kept % 4 == 3) add_last(odd);
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; ++g)
#pragma GCC unroll 2
      for (int t = 0; t < TOKENS; ++t) sums[g][t] = {_mm512_add_ps(even[g][t], odd[g][t])};
  }
};

template <int BITS, int TOKENS, bool NEIGHBOURS>
void pair_rows(const Step& step, const SparsePart& part, int64_t first, int64_t last,
               const TokenBlock& block) {
  Finish finish;
  finish.begin(step, part, block.first_row, first, last, scratch(TILE, padded(last - first)));
  first = PairRows<BITS, TOKENS, 2, NEIGHBOURS>{step, part, block}.run(first, last, finish);
  PairRows<BITS, TOKENS, 1, NEIGHBOURS>{step, part, block}.run(first, last, finish);
}

template <int BITS, bool NEIGHBOURS>
void pair_block_of(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                   const TokenBlock& block) {
  const SparsePart* parts[] = {&part};
  switch (block.width) {
    case 1: return pair_rows<BITS, 1, NEIGHBOURS>(step, part, first, last, block);
    case 2: return pair_rows<BITS, 2, NEIGHBOURS>(step, part, first, last, block);
    case 4: return PairBlock<BITS, 1, 4, NEIGHBOURS>{step, parts, block}.run(first, last);
    default: return PairBlock<BITS, 1, 8, NEIGHBOURS>{step, parts, block}.run(first, last);
  }
}

template <int BITS>
void pair_block(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                const TokenBlock& block) {
  if (part.rows_per_mask == LANES)  // codes of successive columns are neighbours
    pair_block_of<BITS, true>(step, part, first, last, block);
  else
    pair_block_of<BITS, false>(step, part, first, last, block);
}

// The same sums for one or two tokens of each of several variants whose masks are one: x is gathered
// for all of them.
template <int BITS>
void shared_pairs(const Step& step, const SparsePart* const* parts, int64_t first, int64_t last,
                  const TokenBlock& block) {
  const int64_t each = block.tokens / block.variants;
  if (block.width == 8 && each == 1)
    return PairBlock<BITS, 8, 1, true>{step, parts, block}.run(first, last);
  if (block.width == 8) return PairBlock<BITS, 4, 2, true>{step, parts, block}.run(first, last);
  if (each == 1) return PairBlock<BITS, 4, 1, true>{step, parts, block}.run(first, last);
  PairBlock<BITS, 2, 2, true>{step, parts, block}.run(first, last);
}

#endif

}  // namespace tsugiki
