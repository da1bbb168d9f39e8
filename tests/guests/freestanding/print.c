/* Output to the serial port. */
#include "guest.h"

#define SERIAL 0x3f8
#define SERIAL_READY 0x20

static void print_character(char character) {
  while (!(inb(SERIAL + 5) & SERIAL_READY))
    ;
  outb(SERIAL, (uint8_t)character);
}

void print(const char *text) {
  for (; *text; text++)
    print_character(*text);
}

void print_hex(uint64_t value) {
  print("0x");
  int shift = 60;
  while (shift > 0 && !(value >> shift))
    shift -= 4;
  for (; shift >= 0; shift -= 4)
    print_character("0123456789abcdef"[value >> shift & 15]);
}

void print_decimal(uint64_t value) {
  if (value >= 10)
    print_decimal(value / 10);
  print_character((char)('0' + value % 10));
}
