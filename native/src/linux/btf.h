/* BTF as stored (include/uapi/linux/btf.h), and our index of it. */
#ifndef KVMGDB_LINUX_BTF_H
#define KVMGDB_LINUX_BTF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/linux.h>

/* struct btf_type; `info` holds kind, flag and the number of what follows. */
struct btf_raw {
  uint32_t name;
  uint32_t info;
  uint32_t size_or_type;
};

struct btf_raw_member {
  uint32_t name;
  uint32_t type;
  uint32_t offset; /* kind_flag: bit-field size in the upper 8 bits */
};

/*
 * IDs below `start` and strings below `string_start` are the base's. `next`
 * chains types whose names have one hash, by rising ID.
 */
struct kvmgdb_btf {
  const struct kvmgdb_btf *base;
  char *data;
  const char *types;
  size_t types_length;
  const char *strings;
  size_t strings_length;
  uint32_t start;
  uint32_t end;
  uint32_t string_start;
  uint32_t string_end;
  uint32_t *offsets; /* of each own type into `types` */
  uint32_t *next;
  uint32_t *buckets; /* index of an own type + 1 */
  uint32_t bucket_mask;
  uint32_t unknown_kind; /* that the table was cut off for, or 0 */
};

static inline unsigned btf_kind(const struct btf_raw *raw) {
  return raw->info >> 24 & 0x1f;
}

static inline uint32_t btf_count(const struct btf_raw *raw) {
  return raw->info & 0xffff;
}

static inline bool btf_flag(const struct btf_raw *raw) {
  return raw->info >> 31;
}

/* Bytes that follow a type; false for a kind that nobody knows. */
bool btf_extra(const struct btf_raw *raw, size_t *extra);

/* A type and what follows it, in a table that may be unaligned; NULL for an ID
 * that there is not. VOID, type 0, has no bytes either. */
const char *btf_find_raw(const struct kvmgdb_btf *btf, uint32_t id,
                         struct btf_raw *raw);

/* The string at an offset, "" where there is none. */
const char *btf_string(const struct kvmgdb_btf *btf, uint32_t offset);

#endif
