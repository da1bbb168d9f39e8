/*
 * A guest that resets the machine in three ways, one per boot, and then exits:
 * port 0xcf9, the keyboard controller, port 0x92, exit port 0xf4 with 0x21.
 * The number of boots is kept in CMOS byte 0x40; each prints "boot N".
 * dirtied (u64) is set in every boot and is 0 at each start: reset clears RAM.
 */
#include "guest.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define CMOS_BOOTS 0x40

const char guest_name[] = "reset";
const unsigned guest_cpus = MAX_CPUS;

volatile uint64_t dirtied;

void guest_main(unsigned cpu) {
  while (cpu != 0)
    progress[cpu]++;
  if (dirtied)
    print("memory was not cleared\n");
  dirtied = 1;
  outb(CMOS_INDEX, CMOS_BOOTS);
  uint8_t boots = inb(CMOS_DATA);
  outb(CMOS_INDEX, CMOS_BOOTS);
  outb(CMOS_DATA, (uint8_t)(boots + 1));
  print("boot ");
  print_decimal(boots + 1);
  print("\n");
  switch (boots) {
  case 0:
    outb(0xcf9, 0x06);
    break;
  case 1:
    outb(0x64, 0xfe);
    break;
  case 2:
    outb(0x92, 0x01);
    break;
  default:
    outb(EXIT_PORT, 0x21);
  }
  for (;;)
    progress[cpu]++;
}
