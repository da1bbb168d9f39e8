/* What is made so far of a file for debuggers. */
#ifndef KVMGDB_SYMBOLS_DEBUG_H
#define KVMGDB_SYMBOLS_DEBUG_H

#include <kvmgdb/symbols.h>

#include "buffer.h"

#define MAX_AREAS 64

/* A kernel has some hundreds. */
#define MAX_NOTED 4096

/* Code whose function must be in .debug_info, known to BTF or not: so that GDB
 * unwinds it by our rules, and by its name where `switches` gives it another
 * symbol: its frame may lie on another stack than what it calls. */
struct noted_code {
  uint64_t start;
  uint64_t end;
  bool switches;
};

struct kvmgdb_debug {
  struct kvmgdb_debug_area areas[MAX_AREAS];
  size_t area_count;
  struct noted_code noted[MAX_NOTED]; /* by rising address */
  size_t noted_count;
  struct buffer sections[KVMGDB_DEBUG_SECTIONS];
};

/* Index of the area that holds `address`, or -1. */
int area_of(const struct kvmgdb_debug *debug, uint64_t address);

/* Empties sections: they are about to be made, or could not be. */
void debug_reset(struct kvmgdb_debug *debug, uint32_t sections);

/* KVMGDB_OK if all of `sections`, a mask, could be made; otherwise they are
 * emptied, and the first failure is told. */
enum kvmgdb_status debug_finish(struct kvmgdb_debug *debug, uint32_t sections,
                                struct kvmgdb_error *error);

#endif
