/* Code that is told apart by what it is, because no table describes it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "../ranges.h"
#include "orc.h"

/* A kernel has a dozen; the rest is for trampolines of ftrace. */
#define MAX_MARKS (UINT32_C(1) << 16)

_Static_assert(offsetof(struct orc_mark, start) == 0, "see ranges.h");

/* How many marks begin at or below `ip`. */
static size_t marks_below(const struct kvmgdb_unwinder *unwinder, uint64_t ip) {
  return ranges_up_to(unwinder->marks, unwinder->mark_count,
                      sizeof(*unwinder->marks), ip);
}

enum kvmgdb_status kvmgdb_unwinder_mark(struct kvmgdb_unwinder *unwinder,
                                        uint64_t start, uint64_t end,
                                        enum kvmgdb_code code, uint64_t detail,
                                        struct kvmgdb_error *error) {
  if (!unwinder || end <= start || code < KVMGDB_CODE_THUNK ||
      code > KVMGDB_CODE_CALLS_ITSELF ||
      (code == KVMGDB_CODE_CALLS_ITSELF && detail > INT16_MAX / 2) ||
      unwinder->mark_count == MAX_MARKS)
    return error_set(error, KVMGDB_ERR_INVALID, 0, start);
  size_t place = marks_below(unwinder, start), count = unwinder->mark_count;
  if ((place > 0 && unwinder->marks[place - 1].end > start) ||
      (place < count && unwinder->marks[place].start < end))
    return error_set(error, KVMGDB_ERR_INVALID, EEXIST, start);
  struct orc_mark *marks =
      realloc(unwinder->marks, (count + 1) * sizeof(*unwinder->marks));
  if (!marks)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, start);
  unwinder->marks = marks;
  memmove(marks + place + 1, marks + place, (count - place) * sizeof(*marks));
  marks[place] = (struct orc_mark){start, end, code, detail};
  unwinder->mark_count++;
  return KVMGDB_OK;
}

const struct orc_mark *orc_find_mark(const struct kvmgdb_unwinder *unwinder,
                                     uint64_t ip) {
  size_t place = marks_below(unwinder, ip);
  if (place == 0 || ip >= unwinder->marks[place - 1].end)
    return NULL;
  return &unwinder->marks[place - 1];
}
