#include "boot.h"

#include "elf_image.h"

#include <string.h>

static const struct {
  enum boot_protocol protocol;
  const char *name;
  bool (*load)(const struct boot_source *, struct guest_ram *,
               struct boot_entry *, struct vmm_error *);
} protocols[] = {
    {BOOT_PVH, "pvh", boot_load_pvh},
    {BOOT_LINUX, "linux", boot_load_linux},
    {BOOT_BZIMAGE, "bzimage", boot_load_bzimage},
    {BOOT_MULTIBOOT, "multiboot", boot_load_multiboot},
    {BOOT_FLAT, "flat", boot_load_flat},
};
#define PROTOCOL_COUNT (sizeof(protocols) / sizeof(protocols[0]))

const char *boot_protocol_name(enum boot_protocol protocol) {
  for (size_t i = 0; i < PROTOCOL_COUNT; i++)
    if (protocols[i].protocol == protocol)
      return protocols[i].name;
  return "auto";
}

bool boot_protocol_parse(const char *name, enum boot_protocol *protocol) {
  for (size_t i = 0; i < PROTOCOL_COUNT; i++)
    if (strcmp(protocols[i].name, name) == 0) {
      *protocol = protocols[i].protocol;
      return true;
    }
  *protocol = BOOT_AUTO;
  return strcmp(name, "auto") == 0;
}

static bool detect(const struct boot_source *source,
                   enum boot_protocol *protocol, struct vmm_error *error) {
  if (boot_is_bzimage(source->kernel, source->kernel_size)) {
    *protocol = BOOT_BZIMAGE;
    return true;
  }
  if (elf_image_is_elf(source->kernel, source->kernel_size)) {
    struct elf_image image;
    if (!elf_image_parse(source->kernel, source->kernel_size, &image, error))
      return false;
    uint32_t entry;
    if (elf_image_pvh_entry(&image, &entry))
      *protocol = BOOT_PVH;
    else if (boot_is_multiboot(source->kernel, source->kernel_size))
      *protocol = BOOT_MULTIBOOT;
    else if (image.is_64bit)
      *protocol = BOOT_LINUX;
    else
      return vmm_fail(error, "32-bit ELF without a PVH note or a multiboot "
                             "header: no way to start it is known");
    return true;
  }
  if (boot_is_multiboot(source->kernel, source->kernel_size)) {
    *protocol = BOOT_MULTIBOOT;
    return true;
  }
  return vmm_fail(error, "not an ELF, bzImage or multiboot kernel; raw code "
                         "is started with --flat ADDRESS");
}

bool boot_load(const struct boot_source *source, struct guest_ram *ram,
               struct boot_entry *entry, struct vmm_error *error) {
  memset(entry, 0, sizeof(*entry));
  enum boot_protocol protocol = source->protocol;
  if (protocol == BOOT_AUTO && !detect(source, &protocol, error))
    return false;
  entry->protocol = protocol;
  for (size_t i = 0; i < PROTOCOL_COUNT; i++)
    if (protocols[i].protocol == protocol)
      return protocols[i].load(source, ram, entry, error);
  return vmm_fail(error, "unknown boot protocol");
}

bool boot_put_command_line(const struct boot_source *source,
                           struct guest_ram *ram, uint64_t limit,
                           struct vmm_error *error) {
  uint64_t length = strlen(source->command_line);
  if (limit > BOOT_COMMAND_LINE_MAX - 1)
    limit = BOOT_COMMAND_LINE_MAX - 1;
  if (length > limit)
    return vmm_fail(error,
                    "command line of %llu bytes is longer than the %llu that "
                    "this kernel takes",
                    (unsigned long long)length, (unsigned long long)limit);
  return guest_ram_write(ram, BOOT_COMMAND_LINE, source->command_line,
                         length + 1, "command line", error);
}

bool boot_put_initrd(const struct boot_source *source, struct guest_ram *ram,
                     uint64_t floor, uint64_t ceiling, uint64_t *gpa,
                     struct vmm_error *error) {
  if (ceiling > guest_ram_low_size(ram))
    ceiling = guest_ram_low_size(ram);
  uint64_t room = ceiling > floor ? ceiling - floor : 0;
  if (source->initrd_size > room ||
      ((ceiling - source->initrd_size) & ~0xfffULL) < floor)
    return vmm_fail(error,
                    "initrd of %llu bytes does not fit: %llu bytes are free "
                    "between the kernel and %#llx; give the guest more with "
                    "--memory",
                    (unsigned long long)source->initrd_size,
                    (unsigned long long)room, (unsigned long long)ceiling);
  *gpa = (ceiling - source->initrd_size) & ~0xfffULL;
  return guest_ram_write(ram, *gpa, source->initrd, source->initrd_size,
                         "initrd", error);
}

bool boot_put_gdt(struct guest_ram *ram, bool long_mode,
                  struct vmm_error *error) {
  /* SDM volume 3, 3.4.5: granularity 4 KiB, limit 0xfffff, present, DPL 0. */
  const uint64_t gdt[BOOT_GDT_ENTRIES] = {
      0,
      0,
      long_mode ? 0x00af9b000000ffffULL : 0x00cf9b000000ffffULL,
      0x00cf93000000ffffULL,
      0x00008b0000000067ULL,
  };
  return guest_ram_write(ram, BOOT_GDT, gdt, sizeof(gdt), "descriptor table",
                         error);
}
