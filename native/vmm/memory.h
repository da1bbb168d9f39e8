/*
 * Guest RAM: one memfd, mapped once and shared, so that whoever debugs the
 * machine can map the same pages. RAM up to 3 GiB starts at guest-physical 0;
 * the rest continues at 4 GiB, and the hole between belongs to the local and
 * I/O APICs and to KVM's own pages.
 */
#ifndef KVMGDB_VMM_MEMORY_H
#define KVMGDB_VMM_MEMORY_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

#define RAM_LOW_LIMIT (3ULL << 30)
#define RAM_HIGH_BASE (4ULL << 30)
#define RAM_MINIMUM (64ULL << 20)
#define RAM_MAXIMUM (512ULL << 30)

/* Conventional memory ends below the extended BIOS data area. */
#define RAM_CONVENTIONAL_END 0x9fc00ULL
/* Tables that a BIOS would have left: ACPI from here, the MP table above. */
#define RAM_FIRMWARE_START 0xe0000ULL
#define RAM_FIRMWARE_END 0x100000ULL

struct guest_ram {
  uint8_t *hva;
  uint64_t size; /* bytes, without the hole */
  int fd;
};

/* What a guest is told about its memory (e820 types: 1 RAM, 2 reserved). */
struct memory_map_entry {
  uint64_t start;
  uint64_t size;
  uint32_t type;
};
#define MEMORY_MAP_RAM 1
#define MEMORY_MAP_RESERVED 2
#define MEMORY_MAP_MAX 8

bool guest_ram_create(uint64_t size, struct guest_ram *ram,
                      struct vmm_error *error);
void guest_ram_destroy(struct guest_ram *ram);

/* Gives all pages back to the host: every byte reads as zero afterwards. */
bool guest_ram_clear(struct guest_ram *ram, struct vmm_error *error);

/* Bytes of RAM below the hole, and from 4 GiB on. */
uint64_t guest_ram_low_size(const struct guest_ram *ram);
uint64_t guest_ram_high_size(const struct guest_ram *ram);

/* Where [gpa, gpa + length) is in this process; NULL if a byte is not RAM. */
void *guest_ram_at(const struct guest_ram *ram, uint64_t gpa, uint64_t length);

/* `what` names the data in the error. */
bool guest_ram_write(struct guest_ram *ram, uint64_t gpa, const void *data,
                     uint64_t length, const char *what,
                     struct vmm_error *error);

/* Fills at most MEMORY_MAP_MAX entries in ascending order; their number. */
size_t guest_ram_map(const struct guest_ram *ram,
                     struct memory_map_entry entries[MEMORY_MAP_MAX]);

#endif
