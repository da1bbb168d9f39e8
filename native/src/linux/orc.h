/* Unwind tables, decoded: the same for every layout and register numbering. */
#ifndef KVMGDB_LINUX_ORC_H
#define KVMGDB_LINUX_ORC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/linux.h>

enum orc_register {
  ORC_UNDEFINED,
  ORC_AX,
  ORC_DX,
  ORC_DI,
  ORC_BP,
  ORC_SP,
  ORC_R10,
  ORC_R13,
  ORC_PREV_SP,
  ORC_BP_INDIRECT,
  ORC_SP_INDIRECT,
  ORC_UNKNOWN,
};

enum orc_type {
  ORC_TYPE_UNDEFINED,
  ORC_TYPE_END,
  ORC_TYPE_CALL,
  ORC_TYPE_REGS,
  ORC_TYPE_PARTIAL_REGS,
};

struct orc_rule {
  int16_t sp_offset;
  int16_t bp_offset;
  uint8_t sp_register; /* enum orc_register */
  uint8_t bp_register;
  uint8_t type; /* enum orc_type */
  bool signal;
};

/* Code in [start, end); rules[i] holds from start + ips[i] on. `blocks` has for
 * each ORC_BLOCK bytes of code how many ips lie below them. */
#define ORC_BLOCK_SHIFT 8

struct orc_table {
  uint64_t start;
  uint64_t end;
  uint32_t *ips;
  struct orc_rule *rules;
  uint32_t *blocks;
  size_t count;
};

/* What code in [start, end) is that no table describes. */
struct orc_mark {
  uint64_t start;
  uint64_t end;
  enum kvmgdb_code code;
  uint64_t detail; /* see kvmgdb_unwinder_mark() */
};

struct kvmgdb_unwinder {
  struct orc_table *tables; /* by rising start */
  size_t count;
  struct orc_mark *marks; /* by rising start */
  size_t mark_count;
};

/* The rule for the instruction at `ip`; NULL where no table has one. */
const struct orc_rule *orc_find(const struct kvmgdb_unwinder *unwinder,
                                uint64_t ip);

/* What the code at `ip` was said to be; NULL where nothing was. */
const struct orc_mark *orc_find_mark(const struct kvmgdb_unwinder *unwinder,
                                     uint64_t ip);

#endif
