/*
 * Raw code, as a boot sector or a test of a few instructions is: loaded at one
 * address and started there in 16-bit real mode, interrupts off, all general
 * registers zero, SS:SP 0:0x7c00. There is no BIOS to call.
 */
#include "boot.h"

#define REAL_MODE_REACH 0xa0000ULL
#define INTERRUPT_VECTORS_END 0x400ULL

bool boot_load_flat(const struct boot_source *source, struct guest_ram *ram,
                    struct boot_entry *entry, struct vmm_error *error) {
  uint64_t address = source->flat_address;
  if (address < INTERRUPT_VECTORS_END || address >= REAL_MODE_REACH)
    return vmm_fail(error,
                    "flat image cannot start at %#llx: real mode reaches "
                    "%#llx to %#llx",
                    (unsigned long long)address, INTERRUPT_VECTORS_END,
                    REAL_MODE_REACH - 1);
  if (source->kernel_size > REAL_MODE_REACH - address)
    return vmm_fail(error,
                    "flat image of %zu bytes at %#llx reaches beyond the "
                    "first 640 KiB",
                    source->kernel_size, (unsigned long long)address);
  if (source->initrd || source->command_line[0])
    return vmm_fail(error, "a flat image takes no initrd and no command line");
  entry->mode = CPU_REAL16;
  /* The usual 0:7c00 stays so; further up the segment has to reach it. */
  entry->segment = address < 0x10000 ? 0 : (uint16_t)(address >> 4);
  entry->ip = address - ((uint64_t)entry->segment << 4);
  return guest_ram_write(ram, address, source->kernel, source->kernel_size,
                         "flat image", error);
}
