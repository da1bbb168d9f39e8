/*
 * .debug_info, unit by unit. GDB reads a unit as a whole when it needs one
 * entry of it, so that types and functions are spread over many small ones. In
 * each unit are all entries that it refers to, except that a structure, union
 * or enumeration whose name there is only once is defined in one, its home, and
 * only declared in others: debuggers find it by its name.
 */
#ifndef KVMGDB_SYMBOLS_INFO_H
#define KVMGDB_SYMBOLS_INFO_H

#include "../linux/btf.h"
#include "debug.h"
#include "dwarf.h"

/* A reference to what is not there, or has no end. */
#define DAMAGED UINT32_MAX

struct info {
  const struct kvmgdb_btf *btf;
  struct buffer *out;
  struct buffer *strings;
  uint32_t *units;  /* by type: the unit in which it was last referred to, */
  uint32_t *places; /* and where it is in that, from the unit's start */
  uint32_t *queue;  /* types that are referred to and not written yet */
  uint32_t *copies; /* of strings of the base: their place + 1 */
  uint8_t *alone;   /* by type: it is the only one that has its tag */
  struct buffer fixups; /* struct fixup */
  size_t queued;
  size_t written;
  size_t start;        /* of the unit in `out` */
  uint32_t unit;       /* its number, from 1 on */
  uint32_t home_first; /* types that are at home in it */
  uint32_t home_end;
  uint32_t producer; /* offsets into the strings */
  uint32_t name;
  const char *own_name;
  uint32_t damaged;
  bool static_calls_follow_abi;
  bool signs_are_told; /* enumerations say whether they are signed (6.0) */
};

/* Texts that the units have: who made them, and of what. */
enum kvmgdb_status info_init(struct info *info, struct kvmgdb_debug *debug,
                             const struct kvmgdb_btf *btf, const char *producer,
                             const char *name, struct kvmgdb_error *error);
void info_deinit(struct info *info);

/* A unit of code has `high` above `low`. */
void unit_begin(struct info *info, uint64_t low, uint64_t high);

/* Writes what is referred to, and completes the unit. */
void unit_end(struct info *info);

/* The type that an ID stands for: behind type tags; 0 for void. */
uint32_t info_resolve(const struct info *info, uint32_t id);

/* Writes a reference to a resolved type that is not void. */
void info_refer(struct info *info, uint32_t id);

/* The place in .debug_str of a string of the BTF, or of a text added to it. */
uint32_t info_string(struct info *info, uint32_t offset);
uint32_t info_add_text(struct info *info, const char *text);

/* The abbreviation, or the one behind it where there is no type. */
static inline uint32_t info_put_shape(struct info *info,
                                      enum abbreviation typed, uint32_t id) {
  id = info_resolve(info, id);
  put_uleb(info->out, (uint64_t)typed + (id == 0));
  return id;
}

/* Writes the entry of one type (types.c). */
void info_put_type(struct info *info, uint32_t id);

/* Writes the parameters of a FUNC_PROTO, and the end of its children. The first
 * `located` have their location lists at `places`. */
void info_put_parameters(struct info *info, uint32_t prototype,
                         const uint32_t *places, uint32_t located);

/* All types at home in units of their own. */
void info_put_types(struct info *info);

static inline bool is_tag(unsigned kind) {
  return kind == KVMGDB_BTF_STRUCT || kind == KVMGDB_BTF_UNION ||
         kind == KVMGDB_BTF_ENUM || kind == KVMGDB_BTF_ENUM64;
}

#endif
