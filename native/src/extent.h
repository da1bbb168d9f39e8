/* What is mapped, in pieces that are contiguous in GVA and GPA. */
#ifndef KVMGDB_EXTENT_H
#define KVMGDB_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "paging.h"

/* A search for the next extent in [from, last]. */
struct extent_query {
  uint64_t from;     /* in: where to look; out: where to go on */
  uint64_t last;     /* the last address of interest */
  uint64_t enough;   /* an extent of this many bytes is not made longer */
  uint64_t budget;   /* entries; out: what is left. One is always looked at */
  bool ended;        /* out: `last` was reached */
  uint64_t gva, gpa; /* out, when size is not 0 */
  uint64_t size;     /* out: bytes */
};

enum kvmgdb_status extent_find(struct walk *walk, struct extent_query *query,
                               struct kvmgdb_error *error);

#endif
