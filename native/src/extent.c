#include "extent.h"

#include "error.h"

/* Goes on at `next`; an address of 0 lies beyond the last. */
static void advance(struct extent_query *query, uint64_t next) {
  query->ended = next == 0 || next > query->last;
  query->from = next;
}

/* Whether the page at query->from begins the extent or makes it longer. */
static bool take_page(struct extent_query *query,
                      const struct kvmgdb_translation *translation) {
  if (query->size && query->gpa + query->size != translation->gpa)
    return false;
  if (!query->size) {
    query->gva = query->from;
    query->gpa = translation->gpa;
  }
  uint64_t length = translation_left(translation, query->from);
  uint64_t beyond = query->last - query->from;
  if (length > beyond)
    length = beyond + 1;
  query->size += length;
  advance(query, query->from + length);
  return true;
}

enum kvmgdb_status extent_find(struct walk *walk, struct extent_query *query,
                               struct kvmgdb_error *error) {
  query->size = 0;
  query->ended = query->from > query->last;
  while (!query->ended && query->size < query->enough) {
    struct kvmgdb_translation translation;
    struct kvmgdb_error failure;
    enum kvmgdb_status status = walk_translate(
        walk, query->from, query->last - query->from, &translation, &failure);
    if (query->budget)
      query->budget--;
    if (status == KVMGDB_OK) {
      if (!take_page(query, &translation))
        break;
    } else if (status != KVMGDB_ERR_NOT_MAPPED && status != KVMGDB_ERR_NO_RAM) {
      if (error)
        *error = failure;
      return status;
    } else if (query->size) {
      break;
    } else {
      advance(query, walk_skip(walk, query->from, failure.level));
    }
    if (!query->budget)
      break;
  }
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_next_extent(struct kvmgdb_memory *memory,
                                      const struct kvmgdb_paging *paging,
                                      uint64_t from, uint64_t end,
                                      uint64_t budget, uint64_t *gva,
                                      uint64_t *gpa, uint64_t *size,
                                      uint64_t *next, int *done_flag,
                                      struct kvmgdb_error *error) {
  if (!memory || !paging || !gva || !gpa || !size || !next || !done_flag)
    return error_set(error, KVMGDB_ERR_INVALID, 0, from);
  *size = 0;
  *next = from;
  *done_flag = end && from >= end;
  if (*done_flag)
    return KVMGDB_OK;
  struct walk walk;
  walk_begin(&walk, memory, paging);
  struct extent_query query = {
      .from = from, .last = end - 1, .enough = UINT64_MAX, .budget = budget};
  enum kvmgdb_status status = extent_find(&walk, &query, error);
  if (status != KVMGDB_OK)
    return status;
  *gva = query.gva;
  *gpa = query.gpa;
  *size = query.size;
  *next = query.from;
  *done_flag = query.ended;
  return KVMGDB_OK;
}
