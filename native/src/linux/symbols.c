#include "symbols.h"

#include <stdlib.h>
#include <string.h>

#include "../error.h"

enum kvmgdb_status symbols_create(size_t capacity, struct kvmgdb_symbols **out,
                                  struct kvmgdb_error *error) {
  struct kvmgdb_symbols *symbols = calloc(1, sizeof(*symbols));
  if (!symbols)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  symbols->entries = calloc(capacity + 1, sizeof(*symbols->entries));
  symbols->capacity = capacity;
  if (!symbols->entries) {
    kvmgdb_symbols_destroy(symbols);
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  }
  *out = symbols;
  return KVMGDB_OK;
}

void kvmgdb_symbols_destroy(struct kvmgdb_symbols *symbols) {
  if (!symbols)
    return;
  free(symbols->entries);
  free(symbols->names);
  free(symbols->buckets);
  free(symbols);
}

char *symbols_reserve(struct kvmgdb_symbols *symbols, size_t length) {
  size_t needed = symbols->names_length + length + 2;
  if (needed > MAX_NAME_BYTES)
    return NULL;
  if (needed > symbols->names_capacity) {
    size_t capacity = 2 * needed + 4096;
    char *names = realloc(symbols->names, capacity);
    if (!names)
      return NULL;
    symbols->names = names;
    symbols->names_capacity = capacity;
  }
  return symbols->names + symbols->names_length;
}

void symbols_commit(struct kvmgdb_symbols *symbols, uint64_t address,
                    size_t length) {
  symbols->entries[symbols->count] =
      (struct symbol_entry){.address = address,
                            .name = (uint32_t)symbols->names_length,
                            .order = (uint32_t)symbols->count};
  symbols->count++;
  symbols->names_length += length + 2;
}

static int compare_entries(const void *left, const void *right) {
  const struct symbol_entry *a = left, *b = right;
  if (a->address != b->address)
    return a->address < b->address ? -1 : 1;
  return a->order < b->order ? -1 : a->order > b->order;
}

static void sort(struct kvmgdb_symbols *symbols) {
  for (size_t i = 1; i < symbols->count; i++)
    if (symbols->entries[i].address < symbols->entries[i - 1].address) {
      qsort(symbols->entries, symbols->count, sizeof(*symbols->entries),
            compare_entries);
      return;
    }
}

/* FNV-1a. */
static uint32_t hash_name(const char *name) {
  uint32_t hash = UINT32_C(2166136261);
  for (; *name; name++)
    hash = (hash ^ (uint8_t)*name) * UINT32_C(16777619);
  return hash;
}

static const char *name_of(const struct kvmgdb_symbols *symbols, size_t index) {
  return symbols->names + symbols->entries[index].name + 1;
}

/* Chains end with the entry's own index + 1 stored as 0. Filled from the last
 * on, so that each chain runs by rising address. */
enum kvmgdb_status symbols_finish(struct kvmgdb_symbols *symbols,
                                  struct kvmgdb_error *error) {
  sort(symbols);
  uint32_t buckets = 16;
  while (buckets < symbols->count)
    buckets *= 2;
  symbols->buckets = calloc(buckets, sizeof(*symbols->buckets));
  if (!symbols->buckets)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  symbols->bucket_mask = buckets - 1;
  for (size_t i = symbols->count; i-- > 0;) {
    uint32_t *bucket =
        &symbols
             ->buckets[hash_name(name_of(symbols, i)) & symbols->bucket_mask];
    symbols->entries[i].order = *bucket;
    *bucket = (uint32_t)i + 1;
  }
  return KVMGDB_OK;
}

size_t kvmgdb_symbols_count(const struct kvmgdb_symbols *symbols) {
  return symbols ? symbols->count : 0;
}

static void fill(const struct kvmgdb_symbols *symbols, size_t index,
                 struct kvmgdb_symbol *symbol) {
  const char *typed = symbols->names + symbols->entries[index].name;
  *symbol = (struct kvmgdb_symbol){.address = symbols->entries[index].address,
                                   .name = typed + 1,
                                   .type = typed[0],
                                   .index = index};
}

enum kvmgdb_status kvmgdb_symbols_get(const struct kvmgdb_symbols *symbols,
                                      size_t index,
                                      struct kvmgdb_symbol *symbol,
                                      struct kvmgdb_error *error) {
  if (!symbols || !symbol)
    return error_set(error, KVMGDB_ERR_INVALID, 0, index);
  if (index >= symbols->count)
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, index);
  fill(symbols, index, symbol);
  return KVMGDB_OK;
}

/* How many symbols lie below `address`. */
static size_t count_below(const struct kvmgdb_symbols *symbols,
                          uint64_t address) {
  size_t low = 0, high = symbols->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (symbols->entries[middle].address < address)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

enum kvmgdb_status kvmgdb_symbols_at(const struct kvmgdb_symbols *symbols,
                                     uint64_t address,
                                     struct kvmgdb_symbol *symbol,
                                     struct kvmgdb_error *error) {
  if (!symbols || !symbol)
    return error_set(error, KVMGDB_ERR_INVALID, 0, address);
  size_t index = count_below(symbols, address);
  if (index == symbols->count || symbols->entries[index].address != address) {
    if (index == 0)
      return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, address);
    index = count_below(symbols, symbols->entries[index - 1].address);
  }
  fill(symbols, index, symbol);
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_symbols_named(const struct kvmgdb_symbols *symbols,
                                        const char *name, size_t *index,
                                        struct kvmgdb_symbol *symbol,
                                        struct kvmgdb_error *error) {
  if (!symbols || !name || !index || !symbol || *index > symbols->count)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  uint32_t next =
      *index ? symbols->entries[*index - 1].order
             : symbols->buckets[hash_name(name) & symbols->bucket_mask];
  for (; next; next = symbols->entries[next - 1].order)
    if (strcmp(name_of(symbols, next - 1), name) == 0) {
      *index = next;
      fill(symbols, next - 1, symbol);
      return KVMGDB_OK;
    }
  return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, 0);
}
