/*
 * Sorted arrays of records, each of which begins with the address at which what
 * it describes starts.
 */
#ifndef KVMGDB_RANGES_H
#define KVMGDB_RANGES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* How many of `count` records of `size` bytes start at or below `address`. */
static inline size_t ranges_up_to(const void *records, size_t count,
                                  size_t size, uint64_t address) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    uint64_t start;
    memcpy(&start, (const char *)records + middle * size, sizeof(start));
    if (start <= address)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

#endif
