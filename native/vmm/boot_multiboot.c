/*
 * Multiboot 1 (Multiboot Specification 0.6.96): a header within the first
 * 8 KiB, 32-bit protected mode without paging, EAX a magic number, EBX the
 * information structure. The kernel is an ELF file, or (flag 16) its header
 * says what is loaded where.
 */
#include "boot.h"

#include "elf_image.h"

#include <string.h>

#define HEADER_MAGIC 0x1badb002
#define HEADER_SEARCH 8192
#define LOADER_MAGIC 0x2badb002
#define FLAG_PAGE_ALIGN 0x1
#define FLAG_MEMORY_INFO 0x2
#define FLAG_VIDEO 0x4
#define FLAGS_REQUIRED 0xffff
#define FLAG_ADDRESSES 0x10000

struct header {
  uint32_t magic;
  uint32_t flags;
  uint32_t checksum;
  uint32_t header_address;
  uint32_t load_address;
  uint32_t load_end_address;
  uint32_t bss_end_address;
  uint32_t entry_address;
};
#define HEADER_SHORT 12

#define INFO_MEMORY 0x1
#define INFO_COMMAND_LINE 0x4
#define INFO_MODULES 0x8
#define INFO_MEMORY_MAP 0x40
#define INFO_LOADER_NAME 0x200

struct information {
  uint32_t flags;
  uint32_t memory_lower; /* KiB */
  uint32_t memory_upper; /* KiB from 1 MiB on, up to the first hole */
  uint32_t boot_device;
  uint32_t command_line;
  uint32_t module_count;
  uint32_t modules;
  uint32_t symbols[4];
  uint32_t memory_map_length;
  uint32_t memory_map;
  uint32_t drives_length;
  uint32_t drives;
  uint32_t config_table;
  uint32_t loader_name;
};

struct module {
  uint32_t start;
  uint32_t end;
  uint32_t command_line;
  uint32_t reserved;
};

/* `size` counts what follows it, as the specification wants. */
struct memory_area {
  uint32_t size;
  uint64_t address;
  uint64_t length;
  uint32_t type;
} __attribute__((packed));

struct block {
  struct information information;
  struct module module;
  struct memory_area areas[MEMORY_MAP_MAX];
  char loader_name[8];
};
_Static_assert(sizeof(struct block) <= BOOT_COMMAND_LINE - BOOT_INFORMATION,
               "information fits");

/* Finds the header; `length` is how many of its bytes the file has. */
static bool find_header(const uint8_t *file, size_t size, size_t *offset,
                        struct header *header) {
  size_t limit = size < HEADER_SEARCH ? size : HEADER_SEARCH;
  for (size_t at = 0; at + HEADER_SHORT <= limit; at += 4) {
    memset(header, 0, sizeof(*header));
    memcpy(header, file + at, HEADER_SHORT);
    if (header->magic != HEADER_MAGIC ||
        header->magic + header->flags + header->checksum != 0)
      continue;
    size_t length = size - at;
    memcpy(header, file + at,
           length < sizeof(*header) ? length : sizeof(*header));
    *offset = at;
    return true;
  }
  return false;
}

bool boot_is_multiboot(const uint8_t *file, size_t size) {
  size_t offset;
  struct header header;
  return find_header(file, size, &offset, &header);
}

/* Loads what the addresses in the header say; *end is past the last byte. */
static bool load_by_addresses(const struct boot_source *source,
                              struct guest_ram *ram, size_t header_offset,
                              const struct header *header, uint64_t *end,
                              struct vmm_error *error) {
  uint32_t before = header->header_address - header->load_address;
  if (header->header_address < header->load_address || before > header_offset)
    return vmm_fail(error, "multiboot header has a load address that lies "
                           "before its file");
  uint64_t offset = header_offset - before;
  uint64_t available = source->kernel_size - offset;
  uint64_t length = available;
  if (header->load_end_address != 0) {
    if (header->load_end_address < header->load_address ||
        header->load_end_address - header->load_address > available)
      return vmm_fail(error, "multiboot kernel is truncated: its header "
                             "speaks of more than its file has");
    length = header->load_end_address - header->load_address;
  }
  *end = header->load_address + length;
  if (header->bss_end_address > *end)
    *end = header->bss_end_address;
  if (header->load_address < RAM_FIRMWARE_END)
    return vmm_fail(error,
                    "multiboot kernel wants to be loaded at %#x, below "
                    "1 MiB",
                    header->load_address);
  if (!guest_ram_at(ram, header->load_address, *end - header->load_address))
    return vmm_fail(error,
                    "multiboot kernel (%#x to %#llx) does not fit into guest "
                    "memory; give the guest more with --memory",
                    header->load_address, (unsigned long long)*end);
  if (header->entry_address - header->load_address >= length)
    return vmm_fail(error, "multiboot entry %#x lies outside of what is loaded",
                    header->entry_address);
  return guest_ram_write(ram, header->load_address, source->kernel + offset,
                         length, "multiboot kernel", error);
}

static bool load_elf(const struct boot_source *source, struct guest_ram *ram,
                     uint64_t *entry, uint64_t *end, struct vmm_error *error) {
  struct elf_image image;
  if (!elf_image_parse(source->kernel, source->kernel_size, &image, error))
    return false;
  if (!elf_image_physical(&image, image.entry, entry) || *entry > UINT32_MAX)
    return vmm_fail(error,
                    "ELF entry %#llx lies outside of what is loaded "
                    "below 4 GiB",
                    (unsigned long long)image.entry);
  return elf_image_load(&image, ram, end, error);
}

bool boot_load_multiboot(const struct boot_source *source,
                         struct guest_ram *ram, struct boot_entry *entry,
                         struct vmm_error *error) {
  size_t offset;
  struct header header;
  if (!find_header(source->kernel, source->kernel_size, &offset, &header))
    return vmm_fail(error, "no multiboot header in the first 8 KiB");
  uint32_t unknown = header.flags & FLAGS_REQUIRED &
                     ~(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO);
  if (unknown)
    return vmm_fail(error,
                    "multiboot header requires features %#x, which are "
                    "unknown",
                    unknown);
  if (header.flags & FLAG_VIDEO)
    return vmm_fail(error, "multiboot kernel requires a video mode; this "
                           "machine has no display");
  uint64_t end;
  if (header.flags & FLAG_ADDRESSES) {
    if (!load_by_addresses(source, ram, offset, &header, &end, error))
      return false;
    entry->ip = header.entry_address;
  } else if (!load_elf(source, ram, &entry->ip, &end, error)) {
    return false;
  }
  if (!boot_put_command_line(source, ram, BOOT_COMMAND_LINE_MAX, error) ||
      !boot_put_gdt(ram, false, error))
    return false;

  struct block block = {
      .information =
          {
              .flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP |
                       INFO_LOADER_NAME,
              .memory_lower = RAM_CONVENTIONAL_END >> 10,
              .memory_upper =
                  (uint32_t)((guest_ram_low_size(ram) - RAM_FIRMWARE_END) >>
                             10),
              .command_line = (uint32_t)BOOT_COMMAND_LINE,
              .memory_map = BOOT_INFORMATION + offsetof(struct block, areas),
              .loader_name =
                  BOOT_INFORMATION + offsetof(struct block, loader_name),
          },
      .loader_name = "kvmgdb",
  };
  struct memory_map_entry map[MEMORY_MAP_MAX];
  size_t count = guest_ram_map(ram, map);
  for (size_t i = 0; i < count; i++)
    block.areas[i] =
        (struct memory_area){sizeof(block.areas[i]) - sizeof(uint32_t),
                             map[i].start, map[i].size, map[i].type};
  block.information.memory_map_length =
      (uint32_t)(count * sizeof(block.areas[0]));
  if (source->initrd) {
    uint64_t gpa;
    uint64_t floor = end > RAM_FIRMWARE_END ? end : RAM_FIRMWARE_END;
    if (!boot_put_initrd(source, ram, floor, RAM_LOW_LIMIT, &gpa, error))
      return false;
    block.module.start = (uint32_t)gpa;
    block.module.end = (uint32_t)(gpa + source->initrd_size);
    block.information.flags |= INFO_MODULES;
    block.information.module_count = 1;
    block.information.modules =
        BOOT_INFORMATION + offsetof(struct block, module);
  }
  entry->mode = CPU_PROTECTED32;
  entry->rax = LOADER_MAGIC;
  entry->rbx = BOOT_INFORMATION;
  return guest_ram_write(ram, BOOT_INFORMATION, &block, sizeof(block),
                         "multiboot information", error);
}
