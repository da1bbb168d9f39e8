/*
 * Freestanding 64-bit guests with symbols that tests can rely on. Each is one
 * image that runs under kvmgdb-vmm, `qemu-system-x86_64 -accel kvm` and
 * `-accel tcg`, in two files with the same addresses:
 *
 *   build/NAME.elf  64-bit ELF with a PVH note and debugging information
 *   build/NAME.mb   32-bit multiboot ELF (QEMU -kernel takes this one too)
 *
 * In every guest:
 *   progress[MAX_CPUS]   u64, counts the work of each vCPU (see NAME.c)
 *   ticks[MAX_CPUS]      u64, timer interrupts that each vCPU has handled
 *   cpus_online          u32, vCPUs that run (the first is 0)
 *   guest_ready          u32, 1 once everything below is set up
 *   boot_magic, boot_information
 *                        u32, EAX and EBX at the entry
 *   start32              first instruction (32-bit, no paging)
 *   guest_main(cpu)      what each vCPU runs; its caller is start64 or
 *                        ap_start64, where the chain of frame pointers ends
 *   timer_entry          interrupt entry; keeps the chain of frame pointers
 *   timer_tick(cpu)      called from it
 *
 * Memory: loaded at 1 MiB. The first 4 GiB are mapped at their own addresses
 * with 2 MiB pages; the first 2 MiB also at ALIAS_BASE, with 4 KiB pages. So
 * a symbol s can be read at s and at ALIAS_BASE + s. UNMAPPED is not mapped.
 * CR3 is page_table_4, the same on all vCPUs. The image has no instruction
 * that software KVM cannot emulate, unless NAME.c says so.
 *
 * Serial port 0x3f8: "NAME: N vCPUs" and a newline when ready, more in NAME.c.
 */
#ifndef GUEST_H
#define GUEST_H

#define MAX_CPUS 8
#define ALIAS_BASE 0xffffffff80000000
#define UNMAPPED 0x0000700000000000
#define STACK_SIZE 16384
#define TRAMPOLINE 0x70000
#define VECTOR_TIMER 0x40
#define VECTOR_SPURIOUS 0xff

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

extern volatile uint64_t progress[MAX_CPUS];
extern volatile uint64_t ticks[MAX_CPUS];
extern volatile uint32_t cpus_online;
extern volatile uint32_t guest_ready;
extern uint32_t boot_magic;
extern uint32_t boot_information;

/* The guest's name, and what each of its vCPUs does. Defined by NAME.c. */
extern const char guest_name[];
/* How many vCPUs the guest wants: 1, or MAX_CPUS for all there are. */
extern const unsigned guest_cpus;
void guest_main(unsigned cpu);

/* ---- print.c, runtime.c ------------------------------------------------- */

void print(const char *text);
void print_hex(uint64_t value);
void print_decimal(uint64_t value);
/* Sets what runs on an exception or interrupt; see isr.S. */
void set_gate(unsigned vector, void (*entry)(void));

static inline void outb(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

static inline uint32_t read_memory32(uint64_t address) {
  return *(volatile uint32_t *)address;
}

static inline void write_memory32(uint64_t address, uint32_t value) {
  *(volatile uint32_t *)address = value;
}

/* ---- smp.c -------------------------------------------------------------- */

/* Starts all other vCPUs; returns when they run. */
void start_other_cpus(void);
/* A periodic timer interrupt on this vCPU. */
void start_timer(void);

#define EXIT_PORT 0xf4

#endif
#endif
