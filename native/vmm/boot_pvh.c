/*
 * PVH: the x86/HVM direct boot ABI (Xen docs/misc/pvh.pandoc; structures in
 * xen/include/public/arch-x86/hvm/start_info.h). 32-bit protected mode without
 * paging, EBX points to hvm_start_info.
 */
#include "boot.h"

#include "elf_image.h"

#include <string.h>

#define START_INFO_MAGIC 0x336ec578
#define START_INFO_VERSION 1

struct start_info {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t modules;
  uint64_t command_line;
  uint64_t rsdp;
  uint64_t memory_map;
  uint32_t memory_map_entries;
  uint32_t reserved;
};

struct start_info_module {
  uint64_t address;
  uint64_t size;
  uint64_t command_line;
  uint64_t reserved;
};

struct start_info_memory {
  uint64_t address;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};

/* All of it is one block at BOOT_INFORMATION. */
struct block {
  struct start_info info;
  struct start_info_module module;
  struct start_info_memory memory[MEMORY_MAP_MAX];
};
_Static_assert(sizeof(struct start_info) == 56, "start_info layout");
_Static_assert(sizeof(struct block) <= BOOT_COMMAND_LINE - BOOT_INFORMATION,
               "start_info fits");

bool boot_load_pvh(const struct boot_source *source, struct guest_ram *ram,
                   struct boot_entry *entry, struct vmm_error *error) {
  struct elf_image image;
  if (!elf_image_parse(source->kernel, source->kernel_size, &image, error))
    return false;
  uint32_t start;
  if (!elf_image_pvh_entry(&image, &start))
    return vmm_fail(error, "ELF file has no PVH entry note "
                           "(XEN_ELFNOTE_PHYS32_ENTRY)");
  uint64_t physical;
  if (!elf_image_physical(&image, start, &physical) || physical != start)
    return vmm_fail(error, "PVH entry %#x lies outside of what is loaded",
                    start);
  uint64_t end;
  if (!elf_image_load(&image, ram, &end, error) ||
      !boot_put_command_line(source, ram, BOOT_COMMAND_LINE_MAX, error) ||
      !boot_put_gdt(ram, false, error))
    return false;

  struct block block = {
      .info =
          {
              .magic = START_INFO_MAGIC,
              .version = START_INFO_VERSION,
              .command_line = BOOT_COMMAND_LINE,
              .rsdp = source->rsdp,
              .memory_map = BOOT_INFORMATION + offsetof(struct block, memory),
          },
  };
  if (source->initrd) {
    uint64_t floor = end > RAM_FIRMWARE_END ? end : RAM_FIRMWARE_END;
    if (!boot_put_initrd(source, ram, floor, RAM_LOW_LIMIT,
                         &block.module.address, error))
      return false;
    block.module.size = source->initrd_size;
    block.info.module_count = 1;
    block.info.modules = BOOT_INFORMATION + offsetof(struct block, module);
  }
  struct memory_map_entry map[MEMORY_MAP_MAX];
  size_t count = guest_ram_map(ram, map);
  for (size_t i = 0; i < count; i++)
    block.memory[i] =
        (struct start_info_memory){map[i].start, map[i].size, map[i].type, 0};
  block.info.memory_map_entries = (uint32_t)count;

  entry->mode = CPU_PROTECTED32;
  entry->ip = start;
  entry->rbx = BOOT_INFORMATION;
  return guest_ram_write(ram, BOOT_INFORMATION, &block, sizeof(block),
                         "start information", error);
}
