/* The interrupt descriptor table, and the order of start-up. */
#include "guest.h"

#define CODE64 0x08
#define GATE_INTERRUPT 0x8e

volatile uint64_t progress[MAX_CPUS];
volatile uint64_t ticks[MAX_CPUS];
volatile uint32_t cpus_online;
volatile uint32_t guest_ready;
uint32_t boot_magic;
uint32_t boot_information;

struct gate {
  uint16_t offset_low;
  uint16_t selector;
  uint8_t stack;
  uint8_t type;
  uint16_t offset_middle;
  uint32_t offset_high;
  uint32_t reserved;
};

static struct gate idt[256] __attribute__((aligned(16)));

extern void timer_entry(void);
extern void spurious_entry(void);
extern void exception_entry(void);

void set_gate(unsigned vector, void (*entry)(void)) {
  uint64_t address = (uint64_t)entry;
  idt[vector] = (struct gate){
      .offset_low = (uint16_t)address,
      .selector = CODE64,
      .type = GATE_INTERRUPT,
      .offset_middle = (uint16_t)(address >> 16),
      .offset_high = (uint32_t)(address >> 32),
  };
}

static void load_idt(void) {
  struct {
    uint16_t limit;
    uint64_t base;
  } __attribute__((packed)) pointer = {sizeof(idt) - 1, (uint64_t)idt};
  __asm__ volatile("lidt %0" : : "m"(pointer));
}

/* A BIOS may have left the timer on: nothing here comes through the 8259s. */
static void mask_8259(void) {
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
}

void unexpected_exception(const uint64_t *stack) {
  print("unexpected exception, stack");
  for (int i = 0; i < 6; i++) {
    print(" ");
    print_hex(stack[i]);
  }
  print("\n");
}

static void run(unsigned cpu) {
  __asm__ volatile("lock incl %0" : "+m"(cpus_online));
  while (!guest_ready)
    __asm__ volatile("pause");
  start_timer();
  __asm__ volatile("sti");
  guest_main(cpu);
}

/* Called from start.S on the first vCPU, and on each other one. */
void first_cpu_main(void) {
  for (unsigned vector = 0; vector < 32; vector++)
    set_gate(vector, exception_entry);
  set_gate(VECTOR_TIMER, timer_entry);
  set_gate(VECTOR_SPURIOUS, spurious_entry);
  load_idt();
  mask_8259();
  if (guest_cpus > 1)
    start_other_cpus();
  print(guest_name);
  print(": ");
  print_decimal(cpus_online + 1);
  print(" vCPUs\n");
  guest_ready = 1;
  run(0);
}

void other_cpu_main(unsigned cpu) {
  load_idt();
  run(cpu);
}
