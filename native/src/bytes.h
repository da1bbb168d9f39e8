/*
 * Blocks of 16 bytes, for loops over text of the remote protocol. SSE2 is part
 * of every x86-64; elsewhere the compiler's vector types do the same.
 */
#ifndef KVMGDB_BYTES_H
#define KVMGDB_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 16

/* Which bytes of a block stop a loop: bit i for byte i. */
#if defined(__SSE2__) && !defined(KVMGDB_PORTABLE)
#include <emmintrin.h>

typedef __m128i block;

static inline block block_load(const uint8_t *from) {
  return _mm_loadu_si128((const __m128i *)from);
}

static inline void block_store(uint8_t *to, block bytes) {
  _mm_storeu_si128((__m128i *)to, bytes);
}

static inline block block_equal(block bytes, char value) {
  return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(value));
}

/* Which bytes of two blocks are the same. */
static inline block block_same(block a, block b) {
  return _mm_cmpeq_epi8(a, b);
}

static inline block block_or(block a, block b) { return _mm_or_si128(a, b); }

static inline block block_and(block a, block b) { return _mm_and_si128(a, b); }

static inline unsigned block_mask(block bytes) {
  return (unsigned)_mm_movemask_epi8(bytes);
}

/* Sum of the bytes. */
static inline uint64_t block_sum(block bytes) {
  block sums = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return (uint64_t)_mm_cvtsi128_si64(sums) +
         (uint64_t)_mm_cvtsi128_si64(_mm_srli_si128(sums, 8));
}

/* The hexadecimal digits of a block: those of its first half, then others. */
static inline void block_hex(block bytes, block digits[2]) {
  block low_bits = _mm_set1_epi8(0x0f);
  block high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits);
  block low = _mm_and_si128(bytes, low_bits);
  for (int i = 0; i < 2; i++) {
    block nibbles =
        i ? _mm_unpackhi_epi8(high, low) : _mm_unpacklo_epi8(high, low);
    block letters = _mm_cmpgt_epi8(nibbles, _mm_set1_epi8(9));
    block offset = _mm_and_si128(letters, _mm_set1_epi8('a' - '0' - 10));
    digits[i] = _mm_add_epi8(_mm_add_epi8(nibbles, _mm_set1_epi8('0')), offset);
  }
}

#else

typedef uint8_t block __attribute__((vector_size(BLOCK)));

static inline block block_load(const uint8_t *from) {
  block bytes;
  memcpy(&bytes, from, BLOCK);
  return bytes;
}

static inline void block_store(uint8_t *to, block bytes) {
  memcpy(to, &bytes, BLOCK);
}

static inline block block_equal(block bytes, char value) {
  return (block)(bytes == (uint8_t)value);
}

static inline block block_same(block a, block b) { return (block)(a == b); }

static inline block block_or(block a, block b) { return a | b; }

static inline block block_and(block a, block b) { return a & b; }

static inline unsigned block_mask(block bytes) {
  unsigned mask = 0;
  for (unsigned i = 0; i < BLOCK; i++)
    mask |= (unsigned)(bytes[i] >> 7) << i;
  return mask;
}

static inline uint64_t block_sum(block bytes) {
  uint64_t sum = 0;
  for (unsigned i = 0; i < BLOCK; i++)
    sum += bytes[i];
  return sum;
}

static inline void block_hex(block bytes, block digits[2]) {
  static const char digit[] = "0123456789abcdef";
  for (unsigned i = 0; i < BLOCK; i++) {
    digits[i / 8][i % 8 * 2] = (uint8_t)digit[bytes[i] >> 4];
    digits[i / 8][i % 8 * 2 + 1] = (uint8_t)digit[bytes[i] & 15];
  }
}

#endif

#endif
