/* Sequences of 32-bit numbers, each kept once and known by a number. */
#ifndef KVMGDB_PROFILE_INTERN_H
#define KVMGDB_PROFILE_INTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct interned {
  uint64_t start; /* into the pool */
  uint32_t count;
  uint32_t hash;
};

struct intern {
  uint32_t *pool;
  size_t pool_length;
  size_t pool_capacity;
  struct interned *entries;
  size_t count;
  size_t capacity;
  uint32_t *buckets; /* number + 1, or 0; open addressing */
  size_t bucket_count;
  size_t limit; /* of words in the pool */
};

void intern_init(struct intern *intern, size_t limit);
void intern_deinit(struct intern *intern);

/* The number of a sequence; false where there is no room for another. */
bool intern_add(struct intern *intern, const uint32_t *words, uint32_t count,
                uint32_t *number);

/* Words of a sequence; NULL for a number that was not given. */
const uint32_t *intern_get(const struct intern *intern, uint32_t number,
                           uint32_t *count);

#endif
