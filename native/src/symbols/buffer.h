/*
 * Bytes that are appended to. The first failure is kept, and makes all further
 * appends do nothing: it is asked for once, at the end.
 */
#ifndef KVMGDB_SYMBOLS_BUFFER_H
#define KVMGDB_SYMBOLS_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <kvmgdb/kvmgdb.h>

/* Of one section: several times what the largest kernels need. */
#define BUFFER_MOST (UINT32_C(192) << 20)

struct buffer {
  uint8_t *data;
  size_t length;
  size_t capacity;
  enum kvmgdb_status status;
};

/* Grows, so that `more` bytes fit; false where that fails, or has failed. */
bool buffer_grow(struct buffer *buffer, size_t more);
void buffer_deinit(struct buffer *buffer);

static inline bool buffer_reserve(struct buffer *buffer, size_t more) {
  return (buffer->status == KVMGDB_OK &&
          buffer->capacity - buffer->length >= more) ||
         buffer_grow(buffer, more);
}

static inline void buffer_put(struct buffer *buffer, const void *data,
                              size_t length) {
  if (!buffer_reserve(buffer, length))
    return;
  memcpy(buffer->data + buffer->length, data, length);
  buffer->length += length;
}

static inline void put_u8(struct buffer *buffer, uint8_t value) {
  if (buffer_reserve(buffer, 1))
    buffer->data[buffer->length++] = value;
}

static inline void put_u16(struct buffer *buffer, uint16_t value) {
  buffer_put(buffer, &value, sizeof(value));
}

static inline void put_u32(struct buffer *buffer, uint32_t value) {
  buffer_put(buffer, &value, sizeof(value));
}

static inline void put_u64(struct buffer *buffer, uint64_t value) {
  buffer_put(buffer, &value, sizeof(value));
}

static inline void put_text(struct buffer *buffer, const char *text) {
  buffer_put(buffer, text, strlen(text) + 1);
}

static inline void put_uleb(struct buffer *buffer, uint64_t value) {
  for (; value >= 0x80; value >>= 7)
    put_u8(buffer, (uint8_t)(value | 0x80));
  put_u8(buffer, (uint8_t)value);
}

static inline void put_sleb(struct buffer *buffer, int64_t value) {
  for (; value < -0x40 || value >= 0x40; value >>= 7)
    put_u8(buffer, (uint8_t)(value | 0x80));
  put_u8(buffer, (uint8_t)(value & 0x7f));
}

/* Overwrites four bytes that are there already. */
static inline void buffer_patch_u32(struct buffer *buffer, size_t at,
                                    uint32_t value) {
  if (buffer->status == KVMGDB_OK && at + sizeof(value) <= buffer->length)
    memcpy(buffer->data + at, &value, sizeof(value));
}

#endif
