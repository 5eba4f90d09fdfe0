// Inline assembly, one wrapper per instruction, and what stands in for it on older architectures.
//
// The CPU's versions are tests/kernels/cuda/shim/host_instructions.h: a wrapper added here is added
// there. Forks by architecture live here alone, so that kernels are one text for all of them.
#pragma once

// What a template may ask: `if constexpr (HAS_BF16_MMA)`.
constexpr bool HAS_BF16_MMA =
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    true;
#else
    false;  // Turing: f16 tensor cores only
#endif

// ---- conversions ----

DEVICE float float_of_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE uint16_t f16_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

DEVICE uint16_t bf16_of_float(float value) {
#if __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const uint32_t word = __float_as_uint(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the addition could carry out of a NaN
  return static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
#endif
}

DEVICE uint32_t f16_pair_of_floats(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return f16_of_float(low) | uint32_t{f16_of_float(high)} << 16;
#endif
}

DEVICE uint32_t bf16_pair_of_floats(float low, float high) {
#if __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return bf16_of_float(low) | uint32_t{bf16_of_float(high)} << 16;
#endif
}

// The sums of two pairs of f16.
DEVICE uint32_t f16_pair_sum(uint32_t first, uint32_t second) {
  uint32_t sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(first), "r"(second));
  return sum;
}

// ---- bits ----

// (word & mask) ^ pattern as one instruction: of its operands only one may be a constant, and left
// to itself the compiler prefers two instructions to a register.
template <uint32_t mask, uint32_t pattern>
DEVICE uint32_t masked_xor(uint32_t word) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(word), "r"(mask), "r"(pattern));
  return result;
}

// (word & mask) | pattern as one instruction.
template <uint32_t mask, uint32_t pattern>
DEVICE uint32_t masked_or(uint32_t word) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(pattern));
  return result;
}

// word * factor + term as one instruction: the compiler takes a factor that both summands have out of
// the sum, which then is two.
template <uint32_t factor>
DEVICE uint32_t multiply_add(uint32_t word, uint32_t term) {
  uint32_t result;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(word), "n"(factor), "r"(term));
  return result;
}

// ---- memory ----

// 16 bytes that nobody writes during the launch and that are read once: kept out of L1.
DEVICE uint4 load_stream(const void* global) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(global));
  return value;
}

// 16 bytes that will not be read again soon.
DEVICE void store_stream(void* global, uint4 value) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes from global to shared memory. It is there for this thread after
// copy_async_wait, for others after a barrier beyond that. Turing copies at once.
DEVICE void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// The copies since the last commit become one group.
DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `groups` of this thread's newest groups are under way.
template <int groups>
DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// ---- tensor cores: fragments as the PTX ISA lays them out, "Matrix Fragments for mma.m16n8k16" ----

// Four (two, one) 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix
// l / 8 (16 bytes, aligned), and gets of each matrix elements 2 (l % 4), + 1 of row l / 4.
DEVICE void load_matrix(uint32_t (&part)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}

DEVICE void load_matrix(uint32_t (&part)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(part[0]), "=r"(part[1])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
DEVICE void load_matrix_transposed(uint32_t (&part)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}

DEVICE void load_matrix_transposed(uint32_t (&part)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(part[0]), "=r"(part[1])
               : "r"(shared_address(row))
               : "memory");
}

// d (16x8, float) += a (16x8) b (8x8) in f16.
DEVICE void mma_m16n8k8_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// d (16x8, float) += a (16x16, rows) b (16x8, columns) in T: f16 or bf16. Turing does f16 in two
// halves of k and traps on bf16, which launches must not ask of it (HAS_BF16_MMA).
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
DEVICE void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_m16n8k8_f16(d, a[0], a[1], b[0]);
  mma_m16n8k8_f16(d, a[2], a[3], b[1]);
#endif
}

template <>
DEVICE void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
