#include "buffer.h"

#include <stdlib.h>

bool buffer_grow(struct buffer *buffer, size_t more) {
  if (buffer->status != KVMGDB_OK)
    return false;
  if (more > BUFFER_MOST || buffer->length > BUFFER_MOST - more) {
    buffer->status = KVMGDB_ERR_MALFORMED;
    return false;
  }
  size_t capacity = buffer->length + buffer->length / 2 + more + 4096;
  uint8_t *data = realloc(buffer->data, capacity);
  if (!data) {
    buffer->status = KVMGDB_ERR_NO_MEMORY;
    return false;
  }
  buffer->data = data;
  buffer->capacity = capacity;
  return true;
}

void buffer_deinit(struct buffer *buffer) {
  free(buffer->data);
  *buffer = (struct buffer){0};
}
