/* ORC entries as kernels lay them out, for tables that tests make. */
#ifndef KVMGDB_TESTS_ORC_ENTRY_H
#define KVMGDB_TESTS_ORC_ENTRY_H

#include <stdint.h>

struct raw_entry {
  int16_t sp_offset, bp_offset;
  uint16_t bits;
};

/* Members of struct kvmgdb_orc_layout, since 6.4. */
#define ORC_LAYOUT                                                             \
  .entry_size = 6, .sp_offset = {0, 16}, .bp_offset = {16, 16},                \
  .sp_reg = {32, 4}, .bp_reg = {36, 4}, .type = {40, 3}, .signal = {43, 1},    \
  .types = KVMGDB_ORC_TYPES_UNDEFINED_FIRST

#endif
