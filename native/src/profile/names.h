/* Which function an address belongs to, for each address space. */
#ifndef KVMGDB_PROFILE_NAMES_H
#define KVMGDB_PROFILE_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Code in [start, end) is in the function numbered `frame`. */
struct named_range {
  uint64_t start;
  uint64_t end;
  uint32_t frame;
};

struct name_space {
  struct named_range *ranges; /* by rising start, none overlapping */
  size_t count;
  size_t capacity;
};

struct names {
  struct name_space *spaces;
  size_t count;
};

void names_deinit(struct names *names);

/* Names `address`, and what of [start, end) has no name up to the next that
 * does. False where there is no memory. */
bool names_add(struct names *names, uint32_t space, uint64_t address,
               uint64_t start, uint64_t end, uint32_t frame);
/* Takes back the names of what lies in [start, end), be it in part. */
void names_forget(struct names *names, uint32_t space, uint64_t start,
                  uint64_t end);
bool names_find(const struct names *names, uint32_t space, uint64_t address,
                uint32_t *frame);

#endif
