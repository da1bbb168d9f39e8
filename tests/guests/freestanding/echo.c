/*
 * Sends back what arrives at the serial port, by interrupt: IRQ 4 through the
 * I/O APIC. Prints "ready" first; q ends the machine through the exit port
 * with 0x03. progress[0] counts the interrupts; the vCPU halts in between.
 */
#include "guest.h"

#define SERIAL 0x3f8
#define SERIAL_DATA_READY 0x01
#define SERIAL_PIN 4
#define VECTOR_SERIAL 0x44
#define IOAPIC_SELECT 0xfec00000UL
#define IOAPIC_WINDOW 0xfec00010UL
#define IOAPIC_REDIRECTION(pin) (0x10 + 2 * (pin))
#define LAPIC_EOI 0xfee000b0UL

const char guest_name[] = "echo";
const unsigned guest_cpus = 1;

extern void serial_entry(void);

void serial_interrupt(unsigned cpu) {
  progress[cpu]++;
  while (inb(SERIAL + 5) & SERIAL_DATA_READY) {
    char text[2] = {(char)inb(SERIAL), 0};
    print(text);
    if (text[0] == 'q')
      outb(EXIT_PORT, 0x03);
  }
  write_memory32(LAPIC_EOI, 0);
}

static void write_ioapic(uint32_t index, uint32_t value) {
  write_memory32(IOAPIC_SELECT, index);
  write_memory32(IOAPIC_WINDOW, value);
}

void guest_main(unsigned cpu) {
  (void)cpu;
  set_gate(VECTOR_SERIAL, serial_entry);
  write_ioapic(IOAPIC_REDIRECTION(SERIAL_PIN) + 1, 0);
  write_ioapic(IOAPIC_REDIRECTION(SERIAL_PIN), VECTOR_SERIAL);
  print("ready\n");
  outb(SERIAL + 1, 0x01);
  for (;;)
    __asm__ volatile("hlt");
}
