/* The page walk, with what it read kept for the rest of one call. */
#ifndef KVMGDB_PAGING_H
#define KVMGDB_PAGING_H

#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/kvmgdb.h>

#define PAGE_LEVELS 5
#define TABLE_SIZE 4096

/* A run of entries of one table, as read. */
struct table_run {
  uint64_t gpa;  /* of the table */
  size_t offset; /* bytes into the table at which the run begins */
  size_t length; /* bytes; 0: nothing here */
  union {
    uint64_t entry64[TABLE_SIZE / 8];
    uint32_t entry32[TABLE_SIZE / 4];
  };
};

/*
 * A walk lives for one call: the guest may be running, and may change its
 * tables before the next.
 */
struct walk {
  struct kvmgdb_memory *memory;
  const struct kvmgdb_paging *paging;
  enum kvmgdb_paging_mode mode;
  struct table_run level[PAGE_LEVELS]; /* [level - 1] */
};

void walk_begin(struct walk *walk, struct kvmgdb_memory *memory,
                const struct kvmgdb_paging *paging);

/*
 * As kvmgdb_translate. `ahead` is how many bytes beyond `gva` the caller is
 * about to ask for: the entries for them are read along, within one table.
 */
enum kvmgdb_status walk_translate(struct walk *walk, uint64_t gva,
                                  uint64_t ahead,
                                  struct kvmgdb_translation *translation,
                                  struct kvmgdb_error *error);

/*
 * The first address above `gva` that another entry than the one of `level`
 * decides, or, for level 0 (no entry decides), the first that is canonical
 * again; 0 when there is none below 2^64.
 */
uint64_t walk_skip(const struct walk *walk, uint64_t gva, int level);

/* Bytes from `gva` to the end of its page. */
static inline uint64_t
translation_left(const struct kvmgdb_translation *translation, uint64_t gva) {
  return translation->page_size - (gva & (translation->page_size - 1));
}

#endif
