/*
 * The Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode,
 * identity-mapped, RSI points to the zero page. Two kinds of file come here:
 * a bzImage, which says in its setup header where it wants to be, and a
 * vmlinux ELF, whose zero page has to be made up.
 */
#include "boot.h"

#include "elf_image.h"

#include <asm/bootparam.h>
#include <string.h>

#define SETUP_HEADER_OFFSET 0x1f1
#define BZIMAGE_ENTRY_64 0x200
#define BZIMAGE_VERSION_64 0x020c
#define BOOT_FLAG 0xaa55
#define HEADER_MAGIC 0x53726448 /* "HdrS" */
#define LOADER_UNDEFINED 0xff
#define SECTOR 512
#define IDENTITY_GIB 4
#define PAGE_PRESENT_WRITE 0x3
#define PAGE_LARGE 0x80
/* COMMAND_LINE_SIZE of x86 less the NUL, for a vmlinux that cannot say. */
#define VMLINUX_COMMAND_LINE_MAX 2047
/* An ELF has no initrd_addr_max; this is what all 64-bit kernels accept. */
#define VMLINUX_INITRD_CEILING 0x80000000ULL

_Static_assert(sizeof(struct boot_params) == 4096, "zero page is one page");
_Static_assert(offsetof(struct boot_params, hdr) == SETUP_HEADER_OFFSET,
               "setup header is where the protocol says");

static bool put_identity_map(struct guest_ram *ram, struct vmm_error *error) {
  uint64_t table[512] = {BOOT_PAGE_TABLES + 0x1000 + PAGE_PRESENT_WRITE};
  if (!guest_ram_write(ram, BOOT_PAGE_TABLES, table, sizeof(table),
                       "page tables", error))
    return false;
  memset(table, 0, sizeof(table));
  for (uint64_t gib = 0; gib < IDENTITY_GIB; gib++)
    table[gib] = BOOT_PAGE_TABLES + 0x2000 + gib * 0x1000 + PAGE_PRESENT_WRITE;
  if (!guest_ram_write(ram, BOOT_PAGE_TABLES + 0x1000, table, sizeof(table),
                       "page tables", error))
    return false;
  for (uint64_t gib = 0; gib < IDENTITY_GIB; gib++) {
    for (uint64_t i = 0; i < 512; i++)
      table[i] = ((gib << 30) + (i << 21)) | PAGE_LARGE | PAGE_PRESENT_WRITE;
    if (!guest_ram_write(ram, BOOT_PAGE_TABLES + 0x2000 + gib * 0x1000, table,
                         sizeof(table), "page tables", error))
      return false;
  }
  return true;
}

/* What both kinds of kernel are told; the setup header is there already. */
static bool finish(const struct boot_source *source, struct guest_ram *ram,
                   struct boot_params *params, uint64_t kernel_end,
                   uint64_t initrd_ceiling, uint64_t command_line_max,
                   struct vmm_error *error) {
  params->hdr.type_of_loader = LOADER_UNDEFINED;
  params->hdr.cmd_line_ptr = (uint32_t)BOOT_COMMAND_LINE;
  params->acpi_rsdp_addr = source->rsdp;
  struct memory_map_entry map[MEMORY_MAP_MAX];
  size_t count = guest_ram_map(ram, map);
  for (size_t i = 0; i < count; i++)
    params->e820_table[i] = (struct boot_e820_entry){
        .addr = map[i].start, .size = map[i].size, .type = map[i].type};
  params->e820_entries = (uint8_t)count;
  if (source->initrd) {
    uint64_t gpa;
    if (!boot_put_initrd(source, ram, kernel_end, initrd_ceiling, &gpa, error))
      return false;
    params->hdr.ramdisk_image = (uint32_t)gpa;
    params->hdr.ramdisk_size = (uint32_t)source->initrd_size;
  }
  return boot_put_command_line(source, ram, command_line_max, error) &&
         put_identity_map(ram, error) && boot_put_gdt(ram, true, error) &&
         guest_ram_write(ram, BOOT_INFORMATION, params, sizeof(*params),
                         "zero page", error);
}

bool boot_load_linux(const struct boot_source *source, struct guest_ram *ram,
                     struct boot_entry *entry, struct vmm_error *error) {
  struct elf_image image;
  if (!elf_image_parse(source->kernel, source->kernel_size, &image, error))
    return false;
  if (!image.is_64bit)
    return vmm_fail(error, "the Linux 64-bit boot protocol needs a 64-bit ELF");
  uint64_t end;
  if (!elf_image_physical(&image, image.entry, &entry->ip))
    return vmm_fail(error, "ELF entry %#llx lies outside of what is loaded",
                    (unsigned long long)image.entry);
  if (entry->ip >= (uint64_t)IDENTITY_GIB << 30)
    return vmm_fail(error, "ELF entry %#llx lies above 4 GiB",
                    (unsigned long long)entry->ip);
  if (!elf_image_load(&image, ram, &end, error))
    return false;
  struct boot_params params = {
      .hdr =
          {
              .boot_flag = BOOT_FLAG,
              .header = HEADER_MAGIC,
              .version = BZIMAGE_VERSION_64,
              .loadflags = LOADED_HIGH,
              .kernel_alignment = 0x200000,
              .cmdline_size = VMLINUX_COMMAND_LINE_MAX,
              .initrd_addr_max = VMLINUX_INITRD_CEILING - 1,
          },
  };
  if (end < RAM_FIRMWARE_END)
    end = RAM_FIRMWARE_END;
  entry->mode = CPU_LONG64;
  entry->rsi = BOOT_INFORMATION;
  return finish(source, ram, &params, end, VMLINUX_INITRD_CEILING,
                VMLINUX_COMMAND_LINE_MAX, error);
}

bool boot_is_bzimage(const uint8_t *file, size_t size) {
  uint16_t flag;
  uint32_t magic;
  if (size < SETUP_HEADER_OFFSET + sizeof(struct setup_header))
    return false;
  memcpy(&flag, file + 0x1fe, sizeof(flag));
  memcpy(&magic, file + 0x202, sizeof(magic));
  return flag == BOOT_FLAG && magic == HEADER_MAGIC;
}

/* Copies the setup header, which ends where its own jump leads to. */
static void read_setup_header(const struct boot_source *source,
                              struct setup_header *header) {
  size_t end = 0x202 + (size_t)source->kernel[0x201];
  size_t length = end - SETUP_HEADER_OFFSET;
  if (length > sizeof(*header))
    length = sizeof(*header);
  memset(header, 0, sizeof(*header));
  memcpy(header, source->kernel + SETUP_HEADER_OFFSET, length);
}

bool boot_load_bzimage(const struct boot_source *source, struct guest_ram *ram,
                       struct boot_entry *entry, struct vmm_error *error) {
  if (!boot_is_bzimage(source->kernel, source->kernel_size))
    return vmm_fail(error, "not a bzImage: no setup header");
  struct boot_params params = {0};
  struct setup_header *header = &params.hdr;
  read_setup_header(source, header);
  if (header->version < BZIMAGE_VERSION_64 ||
      !(header->xloadflags & XLF_KERNEL_64))
    return vmm_fail(error,
                    "bzImage of boot protocol %u.%02u has no 64-bit entry "
                    "(a 32-bit kernel, or one older than 3.8)",
                    header->version >> 8, header->version & 0xff);
  if (!(header->loadflags & LOADED_HIGH))
    return vmm_fail(error, "zImage, not bzImage: it is loaded low");

  size_t sectors = header->setup_sects ? header->setup_sects : 4;
  size_t offset = (sectors + 1) * SECTOR;
  if (offset >= source->kernel_size ||
      source->kernel_size - offset < (uint64_t)header->syssize * 16 ||
      source->kernel_size - offset <= BZIMAGE_ENTRY_64)
    return vmm_fail(error,
                    "bzImage is truncated: %zu bytes, its header speaks "
                    "of %llu",
                    source->kernel_size,
                    offset + (unsigned long long)header->syssize * 16);
  uint64_t payload = source->kernel_size - offset;

  /*
   * At its preferred address a kernel needs init_size bytes to unpack itself
   * in place; anywhere lower it would move there first and need the same.
   */
  uint64_t load = header->pref_address;
  uint64_t needed = header->init_size > payload ? header->init_size : payload;
  if (load < RAM_FIRMWARE_END)
    return vmm_fail(error, "bzImage wants to be loaded at %#llx, below 1 MiB",
                    (unsigned long long)load);
  uint64_t low = guest_ram_low_size(ram);
  if (load > low || needed > low - load)
    return vmm_fail(error,
                    "bzImage needs %llu MiB of memory below 3 GiB to unpack "
                    "itself; give the guest more with --memory",
                    (unsigned long long)(load >> 20) +
                        (unsigned long long)(needed >> 20) + 1);
  if (!guest_ram_write(ram, load, source->kernel + offset, payload, "bzImage",
                       error))
    return false;
  header->code32_start = (uint32_t)load;
  entry->mode = CPU_LONG64;
  entry->ip = load + BZIMAGE_ENTRY_64;
  entry->rsi = BOOT_INFORMATION;
  return finish(source, ram, &params, load + needed,
                (uint64_t)header->initrd_addr_max + 1, header->cmdline_size,
                error);
}
