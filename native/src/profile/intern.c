#include "intern.h"

#include <stdlib.h>
#include <string.h>

#include "room.h"

#define MAX_ENTRIES (UINT32_C(1) << 24)

void intern_init(struct intern *intern, size_t limit) {
  *intern = (struct intern){.limit = limit};
}

void intern_deinit(struct intern *intern) {
  free(intern->pool);
  free(intern->entries);
  free(intern->buckets);
}

/* FNV-1a, by words; the multiplication leaves the low bits weak. */
static uint32_t hash_words(const uint32_t *words, uint32_t count) {
  uint64_t hash = UINT64_C(14695981039346656037);
  for (uint32_t i = 0; i < count; i++)
    hash = (hash ^ words[i]) * UINT64_C(1099511628211);
  return (uint32_t)(hash >> 32 ^ hash);
}

static bool is_same(const struct intern *intern, uint32_t number,
                    const uint32_t *words, uint32_t count, uint32_t hash) {
  const struct interned *entry = &intern->entries[number];
  return entry->hash == hash && entry->count == count &&
         !memcmp(intern->pool + entry->start, words, count * sizeof(*words));
}

/* The bucket of a sequence, or the free one where it belongs. */
static uint32_t *bucket_of(const struct intern *intern, const uint32_t *words,
                           uint32_t count, uint32_t hash) {
  size_t mask = intern->bucket_count - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    uint32_t *bucket = &intern->buckets[at];
    if (!*bucket || is_same(intern, *bucket - 1, words, count, hash))
      return bucket;
  }
}

static bool grow_buckets(struct intern *intern) {
  size_t bucket_count = intern->bucket_count ? intern->bucket_count * 2 : 1024;
  uint32_t *buckets = calloc(bucket_count, sizeof(*buckets));
  if (!buckets)
    return false;
  for (size_t i = 0; i < intern->count; i++) {
    size_t at = intern->entries[i].hash & (bucket_count - 1);
    while (buckets[at])
      at = (at + 1) & (bucket_count - 1);
    buckets[at] = (uint32_t)i + 1;
  }
  free(intern->buckets);
  intern->buckets = buckets;
  intern->bucket_count = bucket_count;
  return true;
}

static bool reserve_words(struct intern *intern, size_t count) {
  size_t needed = intern->pool_length + count;
  if (needed > intern->limit)
    return false;
  uint32_t *pool =
      room_for(intern->pool, &intern->pool_capacity, needed, sizeof(*pool));
  if (pool)
    intern->pool = pool;
  return pool;
}

static bool reserve_entry(struct intern *intern) {
  struct interned *entries = room_for(intern->entries, &intern->capacity,
                                      intern->count + 1, sizeof(*entries));
  if (entries)
    intern->entries = entries;
  return entries;
}

bool intern_add(struct intern *intern, const uint32_t *words, uint32_t count,
                uint32_t *number) {
  if (intern->count * 2 >= intern->bucket_count && !grow_buckets(intern))
    return false;
  uint32_t hash = hash_words(words, count);
  uint32_t *bucket = bucket_of(intern, words, count, hash);
  if (*bucket) {
    *number = *bucket - 1;
    return true;
  }
  if (intern->count >= MAX_ENTRIES || !reserve_words(intern, count) ||
      !reserve_entry(intern))
    return false;
  memcpy(intern->pool + intern->pool_length, words, count * sizeof(*words));
  intern->entries[intern->count] =
      (struct interned){intern->pool_length, count, hash};
  intern->pool_length += count;
  *number = (uint32_t)intern->count++;
  *bucket = *number + 1;
  return true;
}

const uint32_t *intern_get(const struct intern *intern, uint32_t number,
                           uint32_t *count) {
  if (number >= intern->count)
    return NULL;
  *count = intern->entries[number].count;
  return intern->pool + intern->entries[number].start;
}
