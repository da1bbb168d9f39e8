/* Reads .debug_info as a debugger would, and checks that it holds together. */
#ifndef KVMGDB_TESTS_DWARF_WALK_H
#define KVMGDB_TESTS_DWARF_WALK_H

#include <kvmgdb/symbols.h>

#include <stddef.h>

struct walk {
  size_t units;
  size_t entries;
  size_t functions;
  size_t damaged; /* entries of unspecified types */
};

/* Every entry has its abbreviation and all of its attributes, every reference
 * leads to an entry of its unit, and every string is one. */
struct walk walk_info(const struct kvmgdb_debug *debug);

/* Every entry of .debug_frame ends where it says; how many FDEs there are. */
size_t walk_frames(const struct kvmgdb_debug *debug);

#endif
