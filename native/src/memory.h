/* Guest-physical memory: which backing holds which range. */
#ifndef KVMGDB_MEMORY_H
#define KVMGDB_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/kvmgdb.h>

#include "process.h"

enum region_kind { REGION_PROCESS, REGION_FILE, REGION_CALLBACK };

/* One backing of [gpa, gpa + size). */
struct region {
  uint64_t gpa;
  uint64_t size;
  enum region_kind kind;
  bool read_only;
  union {
    uint64_t hva;
    struct {
      int fd;
      bool process_memory; /* /proc/PID/mem: its ends and errors differ */
      uint64_t huge_page;  /* bytes, on hugetlbfs: it has no pwrite; else 0 */
      uint64_t offset;
    } file;
    struct {
      kvmgdb_read_fn read;
      kvmgdb_write_fn write;
      void *context;
    } callback;
  };
};

struct kvmgdb_memory {
  bool has_process;
  struct process process;
  struct region *regions; /* by rising gpa, none overlapping */
  size_t count;
  size_t capacity;
};

/* The region that holds `gpa`, or the next above it, or NULL. */
const struct region *memory_find(const struct kvmgdb_memory *memory,
                                 uint64_t gpa);

/* Whether [start, start + length) stays within 64 bits. */
static inline bool range_is_valid(uint64_t start, uint64_t length) {
  return length == 0 || length - 1 <= UINT64_MAX - start;
}

/* `length` bytes from `gpa`: a range that is contiguous for the guest. */
struct piece {
  uint64_t gpa;
  size_t length;
};

enum direction { DIRECTION_READ, DIRECTION_WRITE };

/*
 * Moves the bytes of `pieces`, in order, between the guest and `buffer` (which
 * is only read from when writing). `*done` counts the bytes before the first
 * that failed; error->address and ->entry are its guest-physical address.
 */
enum kvmgdb_status memory_transfer(struct kvmgdb_memory *memory,
                                   const struct piece *pieces, size_t count,
                                   enum direction direction, void *buffer,
                                   size_t *done, struct kvmgdb_error *error);

struct walk;

/* As kvmgdb_virtual_read, by a walk that has begun. */
enum kvmgdb_status virtual_read(struct walk *walk, uint64_t gva, void *buffer,
                                size_t length, size_t *done,
                                struct kvmgdb_error *error);

#endif
