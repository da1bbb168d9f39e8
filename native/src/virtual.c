/* Guest-virtual memory: page walk and transfer, a stretch at a time. */
#include "error.h"
#include "memory.h"
#include "paging.h"

#define MAX_PIECES 512

/* The guest-physical pieces of a stretch of guest-virtual memory. */
struct stretch {
  size_t count;
  size_t length; /* bytes */
  struct piece piece[MAX_PIECES];
};

static void add_piece(struct stretch *stretch, uint64_t gpa, size_t length) {
  struct piece *last =
      stretch->count ? &stretch->piece[stretch->count - 1] : NULL;
  if (last && last->gpa + last->length == gpa)
    last->length += length;
  else
    stretch->piece[stretch->count++] =
        (struct piece){.gpa = gpa, .length = length};
  stretch->length += length;
}

/* Translates as much of [gva, gva + length) as it can and has room for. */
static enum kvmgdb_status collect(struct walk *walk, uint64_t gva,
                                  size_t length, struct stretch *stretch,
                                  struct kvmgdb_error *error) {
  stretch->count = 0;
  stretch->length = 0;
  while (stretch->length < length && stretch->count < MAX_PIECES) {
    uint64_t at = gva + stretch->length;
    size_t left = length - stretch->length;
    struct kvmgdb_translation translation;
    enum kvmgdb_status status =
        walk_translate(walk, at, left - 1, &translation, error);
    if (status != KVMGDB_OK)
      return status;
    uint64_t page_left = translation_left(&translation, at);
    add_piece(stretch, translation.gpa, page_left < left ? page_left : left);
  }
  return KVMGDB_OK;
}

static enum kvmgdb_status transfer(struct walk *walk, uint64_t gva,
                                   enum direction direction, void *buffer,
                                   size_t length, size_t *done,
                                   struct kvmgdb_error *error) {
  *done = 0;
  while (*done < length) {
    struct stretch stretch;
    struct kvmgdb_error walk_error;
    enum kvmgdb_status walk_status =
        collect(walk, gva + *done, length - *done, &stretch, &walk_error);
    size_t moved;
    enum kvmgdb_status status =
        memory_transfer(walk->memory, stretch.piece, stretch.count, direction,
                        (char *)buffer + *done, &moved, error);
    *done += moved;
    if (status != KVMGDB_OK) {
      if (error)
        error->address = gva + *done;
      return status;
    }
    if (walk_status != KVMGDB_OK) {
      if (error)
        *error = walk_error;
      return walk_status;
    }
  }
  return KVMGDB_OK;
}

enum kvmgdb_status virtual_read(struct walk *walk, uint64_t gva, void *buffer,
                                size_t length, size_t *done,
                                struct kvmgdb_error *error) {
  *done = 0;
  if (!range_is_valid(gva, length))
    return error_set(error, KVMGDB_ERR_INVALID, 0, gva);
  return transfer(walk, gva, DIRECTION_READ, buffer, length, done, error);
}

static enum kvmgdb_status
transfer_virtual(struct kvmgdb_memory *memory,
                 const struct kvmgdb_paging *paging, uint64_t gva,
                 enum direction direction, void *buffer, size_t length,
                 size_t *done, struct kvmgdb_error *error) {
  size_t unused;
  if (!done)
    done = &unused;
  *done = 0;
  if (!memory || !paging || (!buffer && length) || !range_is_valid(gva, length))
    return error_set(error, KVMGDB_ERR_INVALID, 0, gva);
  struct walk walk;
  walk_begin(&walk, memory, paging);
  return transfer(&walk, gva, direction, buffer, length, done, error);
}

enum kvmgdb_status kvmgdb_virtual_read(struct kvmgdb_memory *memory,
                                       const struct kvmgdb_paging *paging,
                                       uint64_t gva, void *buffer,
                                       size_t length, size_t *done,
                                       struct kvmgdb_error *error) {
  return transfer_virtual(memory, paging, gva, DIRECTION_READ, buffer, length,
                          done, error);
}

enum kvmgdb_status kvmgdb_virtual_write(struct kvmgdb_memory *memory,
                                        const struct kvmgdb_paging *paging,
                                        uint64_t gva, const void *buffer,
                                        size_t length, size_t *done,
                                        struct kvmgdb_error *error) {
  return transfer_virtual(memory, paging, gva, DIRECTION_WRITE, (void *)buffer,
                          length, done, error);
}
