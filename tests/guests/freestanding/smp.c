/* The local APIC: its timer, and the other vCPUs (SDM volume 3, chapter 11). */
#include "guest.h"

#define LAPIC 0xfee00000UL
#define LAPIC_EOI (LAPIC + 0xb0)
#define LAPIC_SPURIOUS (LAPIC + 0xf0)
#define LAPIC_COMMAND (LAPIC + 0x300)
#define LAPIC_TIMER (LAPIC + 0x320)
#define LAPIC_TIMER_START (LAPIC + 0x380)
#define LAPIC_TIMER_NOW (LAPIC + 0x390)
#define LAPIC_TIMER_DIVIDE (LAPIC + 0x3e0)
#define LAPIC_ENABLE 0x100
#define TIMER_PERIODIC 0x20000
#define TIMER_MASKED 0x10000
#define DIVIDE_BY_16 0x3
/* KVM's and QEMU's timers tick at 1 GHz: this is 200 Hz. */
#define TIMER_COUNT (1000000000 / 16 / 200)
#define ALL_BUT_SELF 0xc0000
#define SEND_INIT 0x4500
#define SEND_STARTUP 0x4600
#define TICKS_PER_MS (1000000 / 16)

extern const uint8_t trampoline[], trampoline_end[];
extern volatile uint32_t next_cpu;

/* By the clock, not by a count: an emulator may be a thousand times slower. */
static void wait_ms(uint32_t milliseconds) {
  write_memory32(LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
  write_memory32(LAPIC_TIMER, TIMER_MASKED);
  write_memory32(LAPIC_TIMER_START, milliseconds * TICKS_PER_MS);
  while (read_memory32(LAPIC_TIMER_NOW) != 0)
    __asm__ volatile("pause");
}

void start_timer(void) {
  write_memory32(LAPIC_SPURIOUS, LAPIC_ENABLE | VECTOR_SPURIOUS);
  write_memory32(LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
  write_memory32(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_TIMER);
  write_memory32(LAPIC_TIMER_START, TIMER_COUNT);
}

void start_other_cpus(void) {
  volatile uint8_t *target = (volatile uint8_t *)TRAMPOLINE;
  for (const uint8_t *byte = trampoline; byte < trampoline_end; byte++)
    *target++ = *byte;
  write_memory32(LAPIC_SPURIOUS, LAPIC_ENABLE | VECTOR_SPURIOUS);
  write_memory32(LAPIC_COMMAND, ALL_BUT_SELF | SEND_INIT);
  wait_ms(10);
  for (int i = 0; i < 2; i++) {
    write_memory32(LAPIC_COMMAND,
                   ALL_BUT_SELF | SEND_STARTUP | TRAMPOLINE >> 12);
    wait_ms(50);
  }
  /* Whoever has taken a number will be there soon. */
  while (cpus_online + 1 < (next_cpu < MAX_CPUS ? next_cpu : MAX_CPUS))
    __asm__ volatile("pause");
}

__attribute__((noinline)) void timer_tick(unsigned cpu) { ticks[cpu]++; }

void timer_interrupt(unsigned cpu) {
  timer_tick(cpu);
  write_memory32(LAPIC_EOI, 0);
}

/* A guest's own INT3, where it expects one. */
volatile uint64_t breakpoints[MAX_CPUS];

void breakpoint_interrupt(unsigned cpu) { breakpoints[cpu]++; }
