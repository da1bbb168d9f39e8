/*
 * Time that is split in a known way, on every vCPU, without end:
 *
 *   split_leaf <- split_a (60 %)  <- guest_main <- start code
 *   split_leaf <- split_b (25 %)
 *   split_leaf <- split_c (15 %)
 *
 * split_leaf takes the same time whenever it is called, and so long that what
 * calls and returns take beside it does not count: under TCG, which looks up
 * what a return leads to, that is more than their instructions. progress[cpu]
 * counts the parts that are done.
 */
#include "guest.h"

const char guest_name[] = "split";
const unsigned guest_cpus = MAX_CPUS;

__attribute__((noinline)) void split_leaf(void) {
  for (volatile unsigned i = 0; i < 100; i++)
    ;
}

#define PART(name, times)                                                      \
  __attribute__((noinline)) void name(void) {                                  \
    for (unsigned i = 0; i < (times); i++)                                     \
      split_leaf();                                                            \
  }

PART(split_a, 12)
PART(split_b, 5)
PART(split_c, 3)

void guest_main(unsigned cpu) {
  for (;;) {
    split_a();
    progress[cpu]++;
    split_b();
    progress[cpu]++;
    split_c();
    progress[cpu]++;
  }
}
