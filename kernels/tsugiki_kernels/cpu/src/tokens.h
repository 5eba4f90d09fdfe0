// The rows of a call as the kernels read them: converted once for all parts of a variant.
#pragma once

#include "step.h"

namespace tsugiki {

// Up to `width` tokens, interleaved: value c of token t stands at c * width + t. They are one variant's
// or, in equal shares, those of `variants` that follow each other. Tokens beyond `tokens` are zero.
// width is 1, 2, 4 or 8. The values are float32, or bfloat16 as they came when `words` is set; one or
// two such tokens are read where they are.
struct TokenBlock {
  int64_t variant;  // the first
  int64_t variants;
  int64_t first_row;
  int tokens;
  int width;
  bool words;
  const float* data;

  const uint16_t* bfloat16() const { return (const uint16_t*)data; }
};

constexpr int WIDEST = 8;

// Rows as they are, in float32, zero-padded to whole vectors.
inline void convert_row(const Step& step, int64_t row, float* to) {
  for (int64_t c = 0; c < step.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, step.inputs - c);
    store(to + c, load_up_to(step.dtype, step.x, row * step.x_stride + c, count));
  }
}

inline void convert_block(const Step& step, const TokenBlock& block, float* to) {
  for (int64_t c = 0; c < step.inputs; c += LANES) {
    const int64_t count = std::min<int64_t>(LANES, step.inputs - c);
    Half16 first[8], second[8];
    for (int t = 0; t < WIDEST; ++t) {
      const int64_t index = (block.first_row + t) * step.x_stride + c;
      const Floats values =
          t < block.tokens ? load_up_to(step.dtype, step.x, index, count) : zeros();
      first[t] = low(values), second[t] = high(values);
    }
    transpose8(first), transpose8(second);
    for (int i = 0; i < 8; ++i) {
      std::memcpy(to + (c + i) * block.width, &first[i], block.width * sizeof(float));
      std::memcpy(to + (c + 8 + i) * block.width, &second[i], block.width * sizeof(float));
    }
  }
}

// One column of a block in bfloat16.
inline void interleave_column(const Step& step, const TokenBlock& block, int64_t c, uint16_t* to) {
  const uint16_t* x = (const uint16_t*)step.x + block.first_row * step.x_stride + c;
  for (int t = 0; t < block.width; ++t) to[t] = t < block.tokens ? x[t * step.x_stride] : 0;
}

#if defined(TSUGIKI_AVX512)

// Sixteen columns of four tokens from `token` on: of[i] holds the four of columns 2i, 2i + 1 and, in its
// upper half, of those eight columns further.
struct FourTokens {
  __m256i of[4];

  FourTokens(const Step& step, const TokenBlock& block, int token, int64_t c) {
    const uint16_t* x = (const uint16_t*)step.x + (block.first_row + token) * step.x_stride + c;
    __m256i row[4];
    for (int t = 0; t < 4; ++t)
      row[t] = token + t < block.tokens ? _mm256_loadu_si256((const __m256i*)(x + t * step.x_stride))
                                        : _mm256_setzero_si256();
    const __m256i low[2] = {_mm256_unpacklo_epi16(row[0], row[1]),
                            _mm256_unpacklo_epi16(row[2], row[3])};
    const __m256i high[2] = {_mm256_unpackhi_epi16(row[0], row[1]),
                             _mm256_unpackhi_epi16(row[2], row[3])};
    of[0] = _mm256_unpacklo_epi32(low[0], low[1]), of[1] = _mm256_unpackhi_epi32(low[0], low[1]);
    of[2] = _mm256_unpacklo_epi32(high[0], high[1]), of[3] = _mm256_unpackhi_epi32(high[0], high[1]);
  }
};

inline void store_halves(uint16_t* low, uint16_t* high, __m256i a) {
  _mm_storeu_si128((__m128i*)low, _mm256_castsi256_si128(a));
  _mm_storeu_si128((__m128i*)high, _mm256_extracti128_si256(a, 1));
}

// Sixteen columns.
inline void interleave_sixteen(const Step& step, const TokenBlock& block, int64_t c, uint16_t* to) {
  const FourTokens first(step, block, 0, c);
  if (block.width == 4) {
    for (int i = 0; i < 4; ++i) store_halves(to + 8 * i, to + 32 + 8 * i, first.of[i]);
    return;
  }
  const FourTokens last(step, block, 4, c);
  for (int i = 0; i < 4; ++i, to += 16) {
    store_halves(to, to + 64, _mm256_unpacklo_epi64(first.of[i], last.of[i]));
    store_halves(to + 8, to + 72, _mm256_unpackhi_epi64(first.of[i], last.of[i]));
  }
}

#else

inline void interleave_sixteen(const Step& step, const TokenBlock& block, int64_t c, uint16_t* to) {
  for (int i = 0; i < LANES; ++i) interleave_column(step, block, c + i, to + i * block.width);
}

#endif

inline void interleave_words(const Step& step, const TokenBlock& block, uint16_t* to) {
  int64_t c = 0;
  for (; c + LANES <= step.inputs; c += LANES)
    interleave_sixteen(step, block, c, to + c * block.width);
  for (; c < step.inputs; ++c) interleave_column(step, block, c, to + c * block.width);
}

// How tokens are laid out for the variants that they belong to.
struct Form {
  int width;
  bool words;
};

// The rows of every span as token blocks, each laid out when it is asked for first. Every thread that
// works on a call has its own: to fetch what another core wrote takes longer than to interleave.
class Tokens {
 public:
  // This thread's blocks of one call. `together`: how many variants from one on share a block, each
  // with as many tokens as the next in rows that follow each other. form_for(variant, tokens): a width
  // in {1, 2, 4, 8} that is >= tokens.
  template <class Together, class FormFor>
  static Tokens& of(uint64_t call, const Apply& apply, Together together, FormFor form_for) {
    static thread_local Tokens own;
    if (own.call_ != call) own.begin(call, apply, together, form_for);
    return own;
  }

  // meet(block) for each, in the order of the variants.
  template <class Meet>
  void for_blocks(const Step& step, Meet meet) {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      if (!laid_out_[b]) lay_out(step, blocks_[b]), laid_out_[b] = true;
      meet(blocks_[b]);
    }
  }

 private:
  template <class Together, class FormFor>
  void begin(uint64_t call, const Apply& apply, Together together, FormFor form_for) {
    call_ = call, blocks_.clear();
    int64_t floats = 0;
    for (int64_t v = 0, count; v < apply.variants(); v += count) {
      count = together(v);
      const int64_t stop = apply.spans[v + count - 1].stop;
      for (int64_t row = apply.spans[v].start; row < stop; row += WIDEST) {
        const int tokens = int(std::min<int64_t>(WIDEST, stop - row));
        const Form form = form_for(v, tokens);
        blocks_.push_back({v, count, row, tokens, form.width, form.words, nullptr});
        floats += size_of(apply, blocks_.back());
      }
    }
    laid_out_.assign(blocks_.size(), false);
    const float* data = scratch(TOKENS, floats);
    for (TokenBlock& block : blocks_) block.data = data, data += size_of(apply, block);
  }

  static int64_t size_of(const Step& step, const TokenBlock& block) {
    if (block.words) return block.width <= 2 ? 0 : padded(step.inputs) * block.width / 2;
    return padded(step.inputs) * block.width;
  }

  static void lay_out(const Step& step, const TokenBlock& block) {
    float* data = const_cast<float*>(block.data);
    if (block.words && block.width <= 2) return;
    if (block.words)
      interleave_words(step, block, (uint16_t*)data);
    else if (block.width == 1)
      convert_row(step, block.first_row, data);
    else
      convert_block(step, block, data);
  }

  uint64_t call_ = 0;  // calls count from 1
  std::vector<TokenBlock> blocks_;
  std::vector<char> laid_out_;
};

// The rows of every span one after the other, in float32, each padded to whole vectors.
struct Rows {
  int64_t stride;
  std::vector<int64_t>& first = reused<int64_t>();  // number of rows before variant v

  Rows(const Step& step, const Span* spans, int64_t variants) : stride(padded(step.inputs)) {
    struct Row {
      int64_t place;
    };
    std::vector<Row>& source = reused<Row>();
    for (int64_t v = 0; v < variants; ++v) {
      first.push_back(int64_t(source.size()));
      for (int64_t row = spans[v].start; row < spans[v].stop; ++row) source.push_back({row});
    }
    first.push_back(int64_t(source.size()));
    data = scratch(ROWS, stride * int64_t(source.size()));
    const bool fork = stride * int64_t(source.size()) > 8 * FORK_FROM;
    parallel_for(int64_t(source.size()), step.threads, fork,
                 [&](int64_t i) { convert_row(step, source[i].place, data + i * stride); });
  }

  int64_t count(int64_t variant) const { return first[variant + 1] - first[variant]; }
  const float* of(int64_t variant) const { return data + first[variant] * stride; }

 private:
  float* data;
};

}  // namespace tsugiki
