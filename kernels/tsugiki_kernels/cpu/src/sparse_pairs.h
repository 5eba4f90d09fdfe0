// The tile form for bfloat16 activations where the processor has a product of pairs: two kept
// columns of 16 rows meet one token at a time. Sums of every other pair, in order, the second column
// of a pair before the first; the same for every number of tokens.
#pragma once

#include "pair_weights.h"

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

// `finish` for 16 whole rows of a bfloat16 `out` takes a third of the instructions.
inline __attribute__((always_inline)) void finish_pairs(const Step& step, const SparsePart& part,
                                                        int64_t group, int64_t first_row,
                                                        int tokens, const Floats* sums) {
  const int64_t row = group * LANES;
  if (row + LANES > part.rows || step.out_dtype != BFLOAT16)
    return finish(step, part, group, first_row, tokens, sums);
  const Floats steps = steps_of(part, row, LANES), bias = bias_of(part.bias, row, LANES);
  uint16_t* out = (uint16_t*)step.out + first_row * step.out_stride + part.offset + row;
  for (int t = 0; t < tokens; ++t, out += step.out_stride) {
    const Floats sum = load_bf16(out) + fma(steps, sums[t], bias);
    const __m256bh rounded = _mm512_cvtneps_pbh(sum.v);
    std::memcpy(out, &rounded, sizeof rounded);
  }
}

// total += the products of a pair of bfloat16 with 16 pairs of weights. (From intrinsics the
// compiler makes a load of the pair into 512 bits, of which the core has one a cycle.)
inline void add_products(__m512& total, __m512bh weights, const uint32_t* pair) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(total) : "v"(weights), "m"(*pair));
}

// One block of tokens meets groups of 16 rows one after the other. While the pairs of one group
// meet their weights, those of the next are gathered: the one is work for the vector units, the
// other for the rest of the core.
template <int BITS, int TOKENS, bool NEIGHBOURS>
struct PairBlock {
  const Step& step;
  const SparsePart& part;
  const TokenBlock& block;
  const PairDecoder<BITS> decode{part.zero};
  const PairedX<TOKENS> pair_up{block};
  const int64_t whole = part.kept / 2;  // pairs; an odd last column meets zeros
  // from one column's codes to the next's
  const int64_t next = NEIGHBOURS ? 2 * BITS : part.rows_per_mask * BITS / 8;

  void gather_last(const uint16_t* column, uint32_t* to) const {
    pair_up(*column, *column, to);
    for (int t = 0; t < TOKENS; ++t) to[t] &= 0xffff;
  }

  void gather(const uint16_t* columns, uint32_t* to) const {
    for (int64_t p = 0; p < whole; ++p, columns += 2, to += TOKENS)
      pair_up(columns[0], columns[1], to);
    if (part.kept % 2) gather_last(columns, to);
  }

  // The sums of `group`; the pairs of `columns`, another group's, go to `to`.
  // Pairs 0, 2, 4 ... and 1, 3, 5 ... are summed apart, for the next need not wait for the last.
  inline __attribute__((always_inline)) void meet(const Group& group, const uint32_t* pairs,
                                                  const uint16_t* columns, uint32_t* to,
                                                  Floats (&sums)[TOKENS]) const {
    __m512 even[TOKENS], odd[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) even[t] = odd[t] = _mm512_setzero_ps();
    const uint8_t* codes = group.codes;
    const auto add = [&](__m512bh weights, __m512(&total)[TOKENS]) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) add_products(total[t], weights, pairs + t);
    };
    const auto go_on = [&]() __attribute__((always_inline)) {
      codes += 2 * next, pairs += TOKENS;
      pair_up(columns[0], columns[1], to), columns += 2, to += TOKENS;
    };
    for (int64_t p = 0; p + 1 < whole; p += 2) {
      add(decode_pair<NEIGHBOURS>(decode, codes, next), even), go_on();
      add(decode_pair<NEIGHBOURS>(decode, codes, next), odd), go_on();
    }
    if (whole % 2) add(decode_pair<NEIGHBOURS>(decode, codes, next), even), go_on();
    if (part.kept % 2) {
      if (whole % 2)
        add(decode(codes, codes), odd);
      else
        add(decode(codes, codes), even);
      gather_last(columns, to);
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) sums[t] = {_mm512_add_ps(even[t], odd[t])};
  }

  void run(int64_t first, int64_t last) const {
    const int64_t size = (part.kept + 1) / 2 * TOKENS;
    uint32_t* now = (uint32_t*)scratch(TILE, 2 * size);
    uint32_t* next = now + size;
    Group group = group_of(part, first);
    gather(group.columns, now);
    for (int64_t g = first; g < last; ++g, std::swap(now, next)) {
      Floats sums[TOKENS];
      const Group following = g + 1 < last ? group_of(part, g + 1) : group;
      meet(group, now, following.columns, next, sums);
      group = following;
      finish_pairs(step, part, g, block.first_row, block.tokens, sums);
    }
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
  int64_t run(int64_t first, int64_t last) const {
    for (; first + GROUPS <= last; first += GROUPS) {
      Floats sums[GROUPS][TOKENS];
      meet(first, sums);
      for (int g = 0; g < GROUPS; ++g)
        finish_pairs(step, part, first + g, block.first_row, TOKENS, sums[g]);
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
  first = PairRows<BITS, TOKENS, 2, NEIGHBOURS>{step, part, block}.run(first, last);
  PairRows<BITS, TOKENS, 1, NEIGHBOURS>{step, part, block}.run(first, last);
}

template <int BITS, bool NEIGHBOURS>
void pair_block_of(const Step& step, const SparsePart& part, int64_t first, int64_t last,
                   const TokenBlock& block) {
  switch (block.width) {
    case 1: return pair_rows<BITS, 1, NEIGHBOURS>(step, part, first, last, block);
    case 2: return pair_rows<BITS, 2, NEIGHBOURS>(step, part, first, last, block);
    case 4: return PairBlock<BITS, 4, NEIGHBOURS>{step, part, block}.run(first, last);
    default: return PairBlock<BITS, 8, NEIGHBOURS>{step, part, block}.run(first, last);
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

#endif

}  // namespace tsugiki
