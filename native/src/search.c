/* Looking for bytes in guest-virtual memory, one bounded slice at a time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "error.h"
#include "extent.h"
#include "memory.h"

#define MAX_PATTERN 65536
#define CHUNK (256 * 1024)

/* Bytes that one table entry, or one failed read, takes off the budget. */
#define COST_ENTRY 8
#define COST_FAILURE 4096

struct search {
  struct kvmgdb_memory *memory;
  const void *pattern;
  size_t pattern_length;
  uint64_t budget; /* bytes */
  /* The window: the last `have` bytes before `at`, no more than a match that
   * has begun may need, with room for a chunk behind them. */
  char *window;
  size_t have;
  uint64_t at; /* guest-virtual address up to which memory was looked at */
  bool found;
  uint64_t match;
};

static void spend(struct search *search, uint64_t bytes) {
  search->budget -= bytes < search->budget ? bytes : search->budget;
}

/* Looks at `length` bytes that were read behind the window. */
static void look(struct search *search, size_t length) {
  size_t total = search->have + length;
  uint64_t start = search->at - search->have;
  search->at += length;
  char *match =
      memmem(search->window, total, search->pattern, search->pattern_length);
  if (match) {
    search->found = true;
    search->match = start + (uint64_t)(match - search->window);
    return;
  }
  size_t keep = search->pattern_length - 1;
  if (keep > total)
    keep = total;
  memmove(search->window, search->window + total - keep, keep);
  search->have = keep;
}

/* How far it is from `gpa`, which could not be read, to what may be. */
static uint64_t unreadable_length(struct search *search, uint64_t gpa) {
  const struct region *region = memory_find(search->memory, gpa);
  if (!region)
    return UINT64_MAX;
  if (region->gpa > gpa)
    return region->gpa - gpa;
  return HOST_PAGE_SIZE - (gpa & (HOST_PAGE_SIZE - 1));
}

/* One read of at most a chunk, of the `size` bytes that are mapped at `gpa`;
 * `*length` of them are dealt with. */
static enum kvmgdb_status search_chunk(struct search *search, uint64_t gpa,
                                       uint64_t size, uint64_t *length,
                                       struct kvmgdb_error *error) {
  size_t wanted = size < CHUNK ? size : CHUNK;
  if (wanted > search->budget)
    wanted = search->budget;
  size_t done;
  enum kvmgdb_status status = kvmgdb_memory_read(
      search->memory, gpa, search->window + search->have, wanted, &done, error);
  spend(search, done);
  look(search, done);
  *length = done;
  if (status == KVMGDB_OK || search->found)
    return KVMGDB_OK;
  if (status != KVMGDB_ERR_NO_RAM) {
    if (error)
      error->address = search->at;
    return status;
  }
  spend(search, COST_FAILURE);
  uint64_t skip = unreadable_length(search, gpa + done);
  *length = skip > size - done ? size : done + skip;
  search->at += *length - done;
  search->have = 0;
  return KVMGDB_OK;
}

static enum kvmgdb_status search_extent(struct search *search,
                                        const struct extent_query *extent,
                                        struct kvmgdb_error *error) {
  if (extent->gva != search->at)
    search->have = 0;
  search->at = extent->gva;
  uint64_t offset = 0;
  while (offset < extent->size && search->budget && !search->found) {
    uint64_t length;
    enum kvmgdb_status status = search_chunk(
        search, extent->gpa + offset, extent->size - offset, &length, error);
    if (status != KVMGDB_OK)
      return status;
    offset += length;
  }
  return KVMGDB_OK;
}

/* Until found, out of budget, or at the end of the range. */
static enum kvmgdb_status run(struct search *search, struct walk *walk,
                              uint64_t last, bool *ended,
                              struct kvmgdb_error *error) {
  *ended = false;
  while (!*ended && search->budget && !search->found) {
    uint64_t entries = search->budget / COST_ENTRY + 1;
    struct extent_query query = {.from = search->at,
                                 .last = last,
                                 .enough = search->budget,
                                 .budget = entries};
    enum kvmgdb_status status = extent_find(walk, &query, error);
    if (status == KVMGDB_OK && query.size)
      status = search_extent(search, &query, error);
    if (status != KVMGDB_OK)
      return status;
    spend(search, (entries - query.budget) * COST_ENTRY);
    if (!query.size && query.from != search->at) {
      search->at = query.from;
      search->have = 0;
    }
    *ended = query.ended && search->at == query.from;
  }
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_virtual_search(
    struct kvmgdb_memory *memory, const struct kvmgdb_paging *paging,
    uint64_t from, uint64_t end, const void *pattern, size_t pattern_length,
    uint64_t budget, int *found, uint64_t *match, uint64_t *next,
    int *done_flag, struct kvmgdb_error *error) {
  if (!memory || !paging || !pattern || !found || !match || !next ||
      !done_flag || pattern_length == 0 || pattern_length > MAX_PATTERN)
    return error_set(error, KVMGDB_ERR_INVALID, 0, from);
  *found = 0;
  *next = from;
  *done_flag = end && from >= end;
  if (*done_flag)
    return KVMGDB_OK;
  /* Enough that every slice gets further than the overlap it goes back by. */
  uint64_t least = 2 * pattern_length + 2 * COST_FAILURE;
  SCOPED_FREE char *window = malloc(pattern_length - 1 + CHUNK);
  if (!window)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, ENOMEM, from);
  struct search search = {.memory = memory,
                          .pattern = pattern,
                          .pattern_length = pattern_length,
                          .budget = budget > least ? budget : least,
                          .window = window,
                          .at = from};
  struct walk walk;
  walk_begin(&walk, memory, paging);
  bool ended;
  enum kvmgdb_status status = run(&search, &walk, end - 1, &ended, error);
  if (status != KVMGDB_OK)
    return status;
  *found = search.found;
  *match = search.match;
  *next = search.found ? search.match + 1 : search.at - search.have;
  *done_flag = ended && !search.found;
  if (*done_flag)
    *next = end;
  return KVMGDB_OK;
}
