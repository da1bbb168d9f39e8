/* Arrays that grow. */
#ifndef KVMGDB_PROFILE_ROOM_H
#define KVMGDB_PROFILE_ROOM_H

#include <stddef.h>
#include <stdlib.h>

#define ROOM_SPARE 256

/* `items` with room for `count` of `size` bytes each, which may have moved;
 * NULL where there is no memory, and then they are as they were. */
static inline void *room_for(void *items, size_t *capacity, size_t count,
                             size_t size) {
  if (items && count <= *capacity)
    return items;
  size_t larger = 2 * count + ROOM_SPARE;
  void *moved = realloc(items, larger * size);
  if (moved)
    *capacity = larger;
  return moved;
}

#endif
