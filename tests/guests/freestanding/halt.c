/*
 * Every vCPU halts and is woken by its timer: progress[cpu] counts wake-ups.
 * The halt is at the symbol halt_here.
 */
#include "guest.h"

const char guest_name[] = "halt";
const unsigned guest_cpus = MAX_CPUS;

void guest_main(unsigned cpu) {
  for (;;) {
    __asm__ volatile(".global halt_here\nhalt_here: hlt" : : : "memory");
    progress[cpu]++;
  }
}
