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

static uint8_t *compress(const uint8_t *data, size_t length, uint8_t *out) {
  for (size_t i = 0; i < length;) {
    uint8_t byte = data[i++];
    *out++ = byte;
    size_t more = 0;
    while (more < RSP_RUN_MAX && i + more < length && data[i + more] == byte)
      more++;
    size_t run = writable_run(more);
    if (run) {
      *out++ = RSP_RUN;
      *out++ = (uint8_t)(run + RSP_RUN_BIAS);
      i += run;
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
    return close_frame(start, compress(payload, length, end));
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

size_t kvmgdb_rsp_frame_hex(const void *prefix, size_t prefix_length,
                            const void *data, size_t length, void *out) {
  uint8_t *end = put_prefix(prefix, prefix_length, out);
  return close_frame(out, hex(data, length, end));
}

size_t kvmgdb_rsp_frame_binary(const void *prefix, size_t prefix_length,
                               const void *data, size_t length, void *out) {
  uint8_t *end = put_prefix(prefix, prefix_length, out);
  return close_frame(out, escape(data, length, end));
}
