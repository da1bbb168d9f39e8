#include "names.h"

#include <stdlib.h>
#include <string.h>

#include "../ranges.h"

void names_deinit(struct names *names) {
  for (size_t i = 0; i < names->count; i++)
    free(names->spaces[i].ranges);
  free(names->spaces);
}

static struct name_space *space_of(struct names *names, uint32_t space) {
  if (space >= names->count) {
    size_t count = (size_t)space * 2 + 16;
    struct name_space *spaces = realloc(names->spaces, count * sizeof(*spaces));
    if (!spaces)
      return NULL;
    memset(spaces + names->count, 0, (count - names->count) * sizeof(*spaces));
    names->spaces = spaces;
    names->count = count;
  }
  return &names->spaces[space];
}

_Static_assert(offsetof(struct named_range, start) == 0, "see ranges.h");

/* How many ranges begin at or below `address`. */
static size_t count_up_to(const struct name_space *space, uint64_t address) {
  return ranges_up_to(space->ranges, space->count, sizeof(*space->ranges),
                      address);
}

static bool reserve(struct name_space *space) {
  if (space->count < space->capacity)
    return true;
  size_t capacity = space->capacity * 2 + 16;
  struct named_range *ranges =
      realloc(space->ranges, capacity * sizeof(*ranges));
  if (!ranges)
    return false;
  space->ranges = ranges;
  space->capacity = capacity;
  return true;
}

bool names_add(struct names *names, uint32_t number, uint64_t start,
               uint64_t end, uint32_t frame) {
  struct name_space *space = space_of(names, number);
  if (!space || !reserve(space))
    return false;
  size_t at = count_up_to(space, start);
  if (at && space->ranges[at - 1].end > start)
    start = space->ranges[at - 1].end;
  if (at < space->count && space->ranges[at].start < end)
    end = space->ranges[at].start;
  if (start >= end)
    return true; /* all of it has its names already */
  memmove(space->ranges + at + 1, space->ranges + at,
          (space->count - at) * sizeof(*space->ranges));
  space->ranges[at] = (struct named_range){start, end, frame};
  space->count++;
  return true;
}

bool names_find(const struct names *names, uint32_t number, uint64_t address,
                uint32_t *frame) {
  if (number >= names->count)
    return false;
  const struct name_space *space = &names->spaces[number];
  size_t at = count_up_to(space, address);
  if (!at || space->ranges[at - 1].end <= address)
    return false;
  *frame = space->ranges[at - 1].frame;
  return true;
}
