/* A table of symbols, by rising address, with an index by name. */
#ifndef KVMGDB_LINUX_SYMBOLS_H
#define KVMGDB_LINUX_SYMBOLS_H

#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/linux.h>

/* More than any kernel has, and little enough for the host. */
#define MAX_SYMBOLS (UINT32_C(1) << 22)
#define MAX_NAME_BYTES (UINT32_C(128) << 20)

struct symbol_entry {
  uint64_t address;
  uint32_t name;  /* offset into names */
  uint32_t order; /* in which it was added; later the next of its hash */
};

/* `names` holds for each symbol its type and then its name. */
struct kvmgdb_symbols {
  struct symbol_entry *entries;
  size_t count;
  size_t capacity;
  char *names;
  size_t names_length;
  size_t names_capacity;
  uint32_t *buckets; /* first entry + 1 of each hash, 0 for none */
  uint32_t bucket_mask;
};

enum kvmgdb_status symbols_create(size_t capacity, struct kvmgdb_symbols **out,
                                  struct kvmgdb_error *error);

/* Room for a name of `length` bytes, its type and its end; NULL for none. */
char *symbols_reserve(struct kvmgdb_symbols *symbols, size_t length);

/* Adds what was written to the place that symbols_reserve gave: the type, a
 * name of `length` bytes and its end. There must be room for an entry. */
void symbols_commit(struct kvmgdb_symbols *symbols, uint64_t address,
                    size_t length);

/* Sorts and indexes; nothing is added after this. */
enum kvmgdb_status symbols_finish(struct kvmgdb_symbols *symbols,
                                  struct kvmgdb_error *error);

static inline void cleanup_symbols(struct kvmgdb_symbols **symbols) {
  kvmgdb_symbols_destroy(*symbols);
}

#define SCOPED_SYMBOLS __attribute__((cleanup(cleanup_symbols)))

#endif
