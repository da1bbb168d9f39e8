/*
 * A guest that triple-faults at the symbol triple_fault_here: it reads from
 * UNMAPPED with an empty interrupt descriptor table. Before that it counts
 * progress[0] to 1000 and prints "triple fault now". R12 is 0x1234567812345678
 * then, and RAX is UNMAPPED. Its other vCPUs count on.
 */
#include "guest.h"

const char guest_name[] = "triple";
const unsigned guest_cpus = MAX_CPUS;

static void triple_fault(void) {
  static const struct {
    uint16_t limit;
    uint64_t base;
  } __attribute__((packed)) nothing = {0, 0};
  __asm__ volatile("cli\n"
                   "lidt %0\n"
                   "movabs $0x1234567812345678, %%r12\n"
                   ".global triple_fault_here\n"
                   "triple_fault_here: mov (%%rax), %%rax\n"
                   :
                   : "m"(nothing), "a"(UNMAPPED)
                   : "r12", "memory");
}

void guest_main(unsigned cpu) {
  for (;;) {
    progress[cpu]++;
    if (cpu == 0 && progress[cpu] == 1000) {
      print("triple fault now\n");
      triple_fault();
    }
  }
}
