/*
 * A call chain of known shape on every vCPU, without end:
 *
 *   chain_leaf <- chain_c <- chain_b <- chain_a <- guest_main <- start code
 *
 * progress[cpu] counts calls of chain_leaf; it is written there only.
 * chain_watched (u64) is written by chain_b of vCPU 0, once per call, with
 * the value of progress[0]: something for a watchpoint.
 */
#include "guest.h"

const char guest_name[] = "chain";
const unsigned guest_cpus = MAX_CPUS;

volatile uint64_t chain_watched;

__attribute__((noinline)) void chain_leaf(unsigned cpu, uint64_t weight) {
  for (volatile uint64_t i = 0; i < weight; i++)
    ;
  progress[cpu]++;
}

__attribute__((noinline)) void chain_c(unsigned cpu, uint64_t weight) {
  chain_leaf(cpu, weight);
  __asm__ volatile("" : : : "memory");
}

__attribute__((noinline)) void chain_b(unsigned cpu, uint64_t weight) {
  if (cpu == 0)
    chain_watched = progress[0];
  chain_c(cpu, weight);
  __asm__ volatile("" : : : "memory");
}

__attribute__((noinline)) void chain_a(unsigned cpu, uint64_t weight) {
  chain_b(cpu, weight);
  __asm__ volatile("" : : : "memory");
}

void guest_main(unsigned cpu) {
  for (;;)
    chain_a(cpu, 100);
}
