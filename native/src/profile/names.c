#include "names.h"

#include <stdlib.h>
#include <string.h>

#include "../ranges.h"
#include "room.h"

void names_deinit(struct names *names) {
  for (size_t i = 0; i < names->count; i++)
    free(names->spaces[i].ranges);
  free(names->spaces);
}

static struct name_space *space_of(struct names *names, uint32_t space) {
  size_t before = names->count;
  struct name_space *spaces = room_for(names->spaces, &names->count,
                                       (size_t)space + 1, sizeof(*spaces));
  if (!spaces)
    return NULL;
  memset(spaces + before, 0, (names->count - before) * sizeof(*spaces));
  names->spaces = spaces;
  return &names->spaces[space];
}

_Static_assert(offsetof(struct named_range, start) == 0, "see ranges.h");

/* How many ranges begin at or below `address`. */
static size_t count_up_to(const struct name_space *space, uint64_t address) {
  return ranges_up_to(space->ranges, space->count, sizeof(*space->ranges),
                      address);
}

static bool reserve(struct name_space *space) {
  struct named_range *ranges = room_for(space->ranges, &space->capacity,
                                        space->count + 1, sizeof(*ranges));
  if (ranges)
    space->ranges = ranges;
  return ranges;
}

bool names_add(struct names *names, uint32_t number, uint64_t address,
               uint64_t start, uint64_t end, uint32_t frame) {
  struct name_space *space = space_of(names, number);
  if (!space || !reserve(space))
    return false;
  size_t at = count_up_to(space, address);
  if (at && space->ranges[at - 1].end > address)
    return true;
  if (at && space->ranges[at - 1].end > start)
    start = space->ranges[at - 1].end;
  if (at < space->count && space->ranges[at].start < end)
    end = space->ranges[at].start;
  memmove(space->ranges + at + 1, space->ranges + at,
          (space->count - at) * sizeof(*space->ranges));
  space->ranges[at] = (struct named_range){start, end, frame};
  space->count++;
  return true;
}

void names_forget(struct names *names, uint32_t number, uint64_t start,
                  uint64_t end) {
  if (number >= names->count)
    return;
  struct name_space *space = &names->spaces[number];
  size_t kept = 0;
  for (size_t i = 0; i < space->count; i++) {
    const struct named_range *range = &space->ranges[i];
    if (range->end <= start || range->start >= end)
      space->ranges[kept++] = *range;
  }
  space->count = kept;
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
