/*
 * A guest with an INT3 of its own, at the symbol own_int3; its handler counts
 * in breakpoints[cpu] (u64) and the guest goes on. progress[0] counts rounds,
 * one INT3 each, after the first 1000 rounds without.
 *
 * Software KVM cannot emulate INT3: there the guest ends at own_int3 with
 * KVM_EXIT_INTERNAL_ERROR, and progress[0] is 1000.
 */
#include "guest.h"

#define VECTOR_BREAKPOINT 3

const char guest_name[] = "int3";
const unsigned guest_cpus = 1;

extern void breakpoint_entry(void);

void guest_main(unsigned cpu) {
  set_gate(VECTOR_BREAKPOINT, breakpoint_entry);
  for (;;) {
    if (progress[cpu] >= 1000)
      __asm__ volatile(".global own_int3\nown_int3: int3" : : : "memory");
    progress[cpu]++;
  }
}
