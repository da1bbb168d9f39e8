/*
 * Prints what it was given at the entry, one "key value" a line, ends with
 * "end" and leaves through the exit port with 0x10. Built three ways:
 *
 *   build/bootinfo.elf, .mb         PVH and multiboot
 *   build/bootinfo-linux.elf        64-bit ELF, Linux 64-bit boot protocol
 *   build/bootinfo-linux.bzimage    bzImage, the same
 *
 * Keys: protocol, cmdline, module (size, sum of bytes), map (start, size,
 * type; each entry), rsdp (signature at that address), cpu (CS, DS selectors,
 * CR0, CR4, EFER, RFLAGS at the entry of the Linux protocol).
 */
#include "guest.h"

const char guest_name[] = "bootinfo";
const unsigned guest_cpus = 1;

static uint64_t read(uint64_t address, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; i++)
    value |= (uint64_t) * (volatile uint8_t *)(address + i) << (8 * i);
  return value;
}

static void print_values(const char *key, unsigned count,
                         const uint64_t *values) {
  print(key);
  for (unsigned i = 0; i < count; i++) {
    print(" ");
    print_hex(values[i]);
  }
  print("\n");
}

static void print_text(const char *key, uint64_t address) {
  print(key);
  print(" ");
  print((const char *)address);
  print("\n");
}

static void print_module(uint64_t address, uint64_t size) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < size; i++)
    sum += read(address + i, 1);
  print_values("module", 2, (uint64_t[]){size, sum});
}

static void print_area(uint64_t start, uint64_t size, uint64_t type) {
  print_values("map", 3, (uint64_t[]){start, size, type});
}

static void print_rsdp(uint64_t address) {
  char signature[9] = "none";
  if (address)
    for (unsigned i = 0; i < 8; i++)
      signature[i] = (char)read(address + i, 1);
  print_text("rsdp", (uint64_t)signature);
}

static void leave(void) {
  print("end\n");
  outb(EXIT_PORT, 0x10);
  for (;;)
    ;
}

#ifdef LINUX_PROTOCOL

/* Offsets: Documentation/arch/x86/zero-page.rst and boot.rst. */
static void print_linux(uint64_t zero_page) {
  print("protocol linux\n");
  print_text("cmdline", read(zero_page + 0x228, 4));
  if (read(zero_page + 0x21c, 4) > 0)
    print_module(read(zero_page + 0x218, 4), read(zero_page + 0x21c, 4));
  for (uint64_t i = 0; i < read(zero_page + 0x1e8, 1); i++) {
    uint64_t entry = zero_page + 0x2d0 + i * 20;
    print_area(read(entry, 8), read(entry + 8, 8), read(entry + 16, 4));
  }
  print_rsdp(read(zero_page + 0x70, 8));
}

/* Called from start_linux.S: the zero page, and the state of the entry. */
void linux_main(uint64_t zero_page, const uint64_t *state) {
  print_linux(zero_page);
  print_values("cpu", 6, state);
  leave();
}

#else

#define PVH_MAGIC 0x336ec578
#define MULTIBOOT_MAGIC 0x2badb002

static void print_pvh(uint64_t info) {
  print("protocol pvh\n");
  print_text("cmdline", read(info + 24, 8));
  if (read(info + 12, 4) > 0) {
    uint64_t modules = read(info + 16, 8);
    print_module(read(modules, 8), read(modules + 8, 8));
  }
  uint64_t map = read(info + 40, 8);
  for (uint64_t i = 0; i < read(info + 48, 4); i++, map += 24)
    print_area(read(map, 8), read(map + 8, 8), read(map + 16, 4));
  print_rsdp(read(info + 32, 8));
}

static void print_multiboot(uint64_t info) {
  print("protocol multiboot\n");
  print_text("cmdline", read(info + 16, 4));
  if (read(info + 20, 4) > 0) {
    uint64_t modules = read(info + 24, 4);
    uint64_t start = read(modules, 4);
    print_module(start, read(modules + 4, 4) - start);
  }
  uint64_t map = read(info + 48, 4);
  uint64_t end = map + read(info + 44, 4);
  for (; map < end; map += read(map, 4) + 4)
    print_area(read(map + 4, 8), read(map + 12, 8), read(map + 20, 4));
}

void guest_main(unsigned cpu) {
  if (boot_magic == MULTIBOOT_MAGIC)
    print_multiboot(boot_information);
  else if (read(boot_information, 4) == PVH_MAGIC)
    print_pvh(boot_information);
  else
    print("protocol unknown\n");
  progress[cpu]++;
  leave();
}

#endif
