/*
 * The little of ELF that a boot loader needs: which bytes go where, where the
 * entry is, and Xen's note with the 32-bit PVH entry. Works on a file in
 * memory that may be truncated or hostile.
 */
#ifndef KVMGDB_VMM_ELF_IMAGE_H
#define KVMGDB_VMM_ELF_IMAGE_H

#include "error.h"
#include "memory.h"

#include <stddef.h>
#include <stdint.h>

#define ELF_IMAGE_MAX_SEGMENTS 64

struct elf_segment {
  uint64_t offset;
  uint64_t file_size;
  uint64_t vaddr;
  uint64_t paddr;
  uint64_t memory_size;
};

struct elf_image {
  const uint8_t *file;
  size_t file_size;
  bool is_64bit;
  uint64_t entry;
  size_t load_count;
  struct elf_segment load[ELF_IMAGE_MAX_SEGMENTS];
  size_t note_count;
  struct elf_segment note[ELF_IMAGE_MAX_SEGMENTS];
};

bool elf_image_is_elf(const uint8_t *file, size_t size);

/* Little-endian x86 executables with 1 to 64 segments of bytes that exist. */
bool elf_image_parse(const uint8_t *file, size_t size, struct elf_image *image,
                     struct vmm_error *error);

/* True if a XEN_ELFNOTE_PHYS32_ENTRY note is there. */
bool elf_image_pvh_entry(const struct elf_image *image, uint32_t *entry);

/* Loads all segments at their physical addresses; *end is past the last. */
bool elf_image_load(const struct elf_image *image, struct guest_ram *ram,
                    uint64_t *end, struct vmm_error *error);

/* The physical address at which `address`, physical or virtual, is loaded. */
bool elf_image_physical(const struct elf_image *image, uint64_t address,
                        uint64_t *physical);

#endif
