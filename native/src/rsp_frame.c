/*
 * Frames of the remote protocol: GDB manual, appendix E, "Overview" (escapes,
 * run lengths) and "Packet acknowledgment".
 */
#include <stdbool.h>

#include "bytes.h"
#include "rsp.h"

uint8_t kvmgdb_rsp_checksum(const void *data, size_t length) {
  const uint8_t *bytes = data;
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + BLOCK <= length; i += BLOCK)
    sum += block_sum(block_load(bytes + i));
  for (; i < length; i++)
    sum += bytes[i];
  return (uint8_t)sum;
}

/* Bytes that are encoded at once where runs are looked for. */
#define PIECE 2048

static const char digits[] = "0123456789abcdef";

/* Bytes that a payload of the protocol never holds as they are. */
static bool is_special(uint8_t byte) {
  return byte == '#' || byte == '$' || byte == RSP_ESCAPE || byte == RSP_RUN;
}

static unsigned special_mask(block bytes) {
  return block_mask(block_or(
      block_or(block_equal(bytes, '#'), block_equal(bytes, '$')),
      block_or(block_equal(bytes, RSP_ESCAPE), block_equal(bytes, RSP_RUN))));
}

/* Puts "$" before and "#cc" behind what lies in [out + 1, end). */
static size_t close_frame(uint8_t *out, uint8_t *end) {
  uint8_t checksum = kvmgdb_rsp_checksum(out + 1, (size_t)(end - out - 1));
  *out = '$';
  *end++ = '#';
  *end++ = (uint8_t)digits[checksum >> 4];
  *end++ = (uint8_t)digits[checksum & 15];
  return (size_t)(end - out);
}

/* Without a branch: about one byte in 64 of random data is special. */
static uint8_t *escape_byte(uint8_t byte, uint8_t *out) {
  unsigned special = is_special(byte);
  *out = RSP_ESCAPE;
  out += special;
  *out++ = byte ^ (uint8_t)(special * RSP_ESCAPE_BIT);
  return out;
}

static uint8_t *escape(const uint8_t *data, size_t length, uint8_t *out) {
  size_t i = 0;
  for (; i + BLOCK <= length; i += BLOCK) {
    block bytes = block_load(data + i);
    if (!special_mask(bytes)) {
      block_store(out, bytes);
      out += BLOCK;
    } else {
      for (size_t j = 0; j < BLOCK; j++)
        out = escape_byte(data[i + j], out);
    }
  }
  for (; i < length; i++)
    out = escape_byte(data[i], out);
  return out;
}

static bool has_special(const uint8_t *data, size_t length) {
  size_t i = 0;
  for (; i + BLOCK <= length; i += BLOCK)
    if (special_mask(block_load(data + i)))
      return true;
  for (; i < length; i++)
    if (is_special(data[i]))
      return true;
  return false;
}

/* The longest run of further copies, at most `more`, that can be written. */
static size_t writable_run(size_t more) {
  if (more > RSP_RUN_MAX)
    more = RSP_RUN_MAX;
  while (more >= RSP_RUN_MIN) {
    char count = (char)(more + RSP_RUN_BIAS);
    if (count != '#' && count != '$' && count != '+' && count != '-')
      return more;
    more--;
  }
  return 0;
}

/* How many bytes of [data, end) are `byte`, at most RSP_RUN_MAX. */
static size_t count_run(const uint8_t *data, const uint8_t *end, uint8_t byte) {
  size_t count = 0;
  size_t most = (size_t)(end - data);
  if (most > RSP_RUN_MAX)
    most = RSP_RUN_MAX;
  while (count + BLOCK <= most) {
    unsigned other =
        0xffff & ~block_mask(block_equal(block_load(data + count), (char)byte));
    if (other)
      return count + (size_t)__builtin_ctz(other);
    count += BLOCK;
  }
  while (count < most && data[count] == byte)
    count++;
  return count;
}

/*
 * Where in a block the bytes are that RSP_RUN_MIN more of the same follow: a
 * run that is worth writing. Reads BLOCK + RSP_RUN_MIN bytes.
 */
static unsigned run_mask(const uint8_t *data) {
  block bytes = block_load(data);
  block same = block_same(bytes, block_load(data + 1));
  for (size_t i = 2; i <= RSP_RUN_MIN; i++)
    same = block_and(same, block_same(bytes, block_load(data + i)));
  return block_mask(same);
}

/*
 * Never writes more than it reads, or, where it escapes, twice that. Stores
 * whole blocks: what lies behind the end of its output is overwritten later.
 */
static uint8_t *compress(const uint8_t *data, size_t length, bool escapes,
                         uint8_t *out) {
  const uint8_t *end = data + length;
  while (data < end) {
    if ((size_t)(end - data) >= BLOCK + RSP_RUN_MIN) {
      block bytes = block_load(data);
      unsigned stops = run_mask(data) | (escapes ? special_mask(bytes) : 0);
      size_t plain = stops ? (size_t)__builtin_ctz(stops) : BLOCK;
      block_store(out, bytes);
      data += plain;
      out += plain;
      if (!stops)
        continue;
    }
    uint8_t byte = *data++;
    if (escapes && is_special(byte)) {
      *out++ = RSP_ESCAPE;
      *out++ = byte ^ RSP_ESCAPE_BIT;
      continue;
    }
    *out++ = byte;
    size_t run = writable_run(count_run(data, end, byte));
    if (run) {
      *out++ = RSP_RUN;
      *out++ = (uint8_t)(run + RSP_RUN_BIAS);
      data += run;
    }
  }
  return out;
}

size_t kvmgdb_rsp_frame(const void *payload, size_t length, int binary,
                        int runs, void *out) {
  uint8_t *start = out;
  uint8_t *end = start + 1;
  if (binary)
    return close_frame(start, escape(payload, length, end));
  if (has_special(payload, length))
    return 0;
  if (runs)
    return close_frame(start, compress(payload, length, false, end));
  if (length)
    memcpy(end, payload, length);
  return close_frame(start, end + length);
}

static uint8_t *hex(const uint8_t *data, size_t length, uint8_t *out) {
  size_t i = 0;
  for (; i + BLOCK <= length; i += BLOCK) {
    block both[2];
    block_hex(block_load(data + i), both);
    block_store(out, both[0]);
    block_store(out + BLOCK, both[1]);
    out += 2 * BLOCK;
  }
  for (; i < length; i++) {
    *out++ = (uint8_t)digits[data[i] >> 4];
    *out++ = (uint8_t)digits[data[i] & 15];
  }
  return out;
}

static uint8_t *put_prefix(const void *prefix, size_t length, uint8_t *out) {
  if (length)
    memcpy(out + 1, prefix, length);
  return out + 1 + length;
}

/* Encodes piece by piece, so that what is compressed is in the cache. */
static uint8_t *hex_runs(const uint8_t *data, size_t length, uint8_t *out) {
  uint8_t digit[2 * PIECE];
  while (length) {
    size_t piece = length < PIECE ? length : PIECE;
    out =
        compress(digit, (size_t)(hex(data, piece, digit) - digit), false, out);
    data += piece;
    length -= piece;
  }
  return out;
}

size_t kvmgdb_rsp_frame_hex(const void *prefix, size_t prefix_length,
                            const void *data, size_t length, int runs,
                            void *out) {
  uint8_t *end = put_prefix(prefix, prefix_length, out);
  return close_frame(out, runs ? hex_runs(data, length, end)
                               : hex(data, length, end));
}

size_t kvmgdb_rsp_frame_binary(const void *prefix, size_t prefix_length,
                               const void *data, size_t length, int runs,
                               void *out) {
  uint8_t *end = put_prefix(prefix, prefix_length, out);
  return close_frame(out, runs ? compress(data, length, true, end)
                               : escape(data, length, end));
}
