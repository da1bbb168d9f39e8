/*
 * From a kernel file to a guest that is ready to run: what is in memory, and
 * the state in which the first vCPU starts. One boot_*.c per protocol; each
 * reads a file that may be truncated or hostile and bounds every offset in it.
 *
 * Low memory as every protocol here lays it out (nothing of a kernel may be
 * loaded over it):
 *
 *   0x01000  global descriptor table (null, unused, code, data, TSS)
 *   0x02000  identity page tables of the Linux 64-bit protocol, 6 pages
 *   0x08000  zero page (Linux) / start_info (PVH) / information (multiboot)
 *   0x10000  command line, up to 64 KiB
 */
#ifndef KVMGDB_VMM_BOOT_H
#define KVMGDB_VMM_BOOT_H

#include "error.h"
#include "memory.h"

#include <stddef.h>
#include <stdint.h>

#define BOOT_AREA_START 0x1000ULL
#define BOOT_GDT 0x1000ULL
#define BOOT_PAGE_TABLES 0x2000ULL
#define BOOT_INFORMATION 0x8000ULL
#define BOOT_COMMAND_LINE 0x10000ULL
#define BOOT_COMMAND_LINE_MAX 0x10000ULL
#define BOOT_AREA_END 0x20000ULL

/* Selectors as the Linux boot protocol wants them (__BOOT_CS, __BOOT_DS). */
#define BOOT_SELECTOR_CODE 0x10
#define BOOT_SELECTOR_DATA 0x18
#define BOOT_SELECTOR_TSS 0x20
#define BOOT_GDT_ENTRIES 5

enum boot_protocol {
  BOOT_AUTO,      /* by what the file says it is */
  BOOT_PVH,       /* ELF with XEN_ELFNOTE_PHYS32_ENTRY */
  BOOT_LINUX,     /* ELF64 (a vmlinux), Linux 64-bit boot protocol */
  BOOT_BZIMAGE,   /* bzImage, Linux 64-bit boot protocol */
  BOOT_MULTIBOOT, /* multiboot 1, ELF or with addresses in its header */
  BOOT_FLAT,      /* raw bytes, real mode */
};

const char *boot_protocol_name(enum boot_protocol protocol);
bool boot_protocol_parse(const char *name, enum boot_protocol *protocol);

enum cpu_mode { CPU_REAL16, CPU_PROTECTED32, CPU_LONG64 };

/* State of the first vCPU; what is not named here is as after power-up. */
struct boot_entry {
  enum boot_protocol protocol;
  enum cpu_mode mode;
  uint16_t segment; /* CPU_REAL16: CS; other segments are 0 */
  uint64_t ip;
  uint64_t rax;
  uint64_t rbx;
  uint64_t rsi;
};

struct boot_source {
  const uint8_t *kernel;
  size_t kernel_size;
  const uint8_t *initrd; /* NULL: none */
  size_t initrd_size;
  const char *command_line;
  enum boot_protocol protocol;
  uint64_t flat_address; /* BOOT_FLAT: where it is loaded and started */
  uint64_t rsdp;         /* guest-physical address of the ACPI RSDP */
};

/* Loads `source` into `ram` (all zero before) and says how to start it. */
bool boot_load(const struct boot_source *source, struct guest_ram *ram,
               struct boot_entry *entry, struct vmm_error *error);

bool boot_load_pvh(const struct boot_source *source, struct guest_ram *ram,
                   struct boot_entry *entry, struct vmm_error *error);
bool boot_load_linux(const struct boot_source *source, struct guest_ram *ram,
                     struct boot_entry *entry, struct vmm_error *error);
bool boot_load_bzimage(const struct boot_source *source, struct guest_ram *ram,
                       struct boot_entry *entry, struct vmm_error *error);
bool boot_load_multiboot(const struct boot_source *source,
                         struct guest_ram *ram, struct boot_entry *entry,
                         struct vmm_error *error);
bool boot_load_flat(const struct boot_source *source, struct guest_ram *ram,
                    struct boot_entry *entry, struct vmm_error *error);

/* Which protocols a file offers, from its headers alone. */
bool boot_is_bzimage(const uint8_t *file, size_t size);
bool boot_is_multiboot(const uint8_t *file, size_t size);

/* ---- shared by the protocols ------------------------------------------- */

/* Writes the command line at BOOT_COMMAND_LINE; `limit` without the NUL. */
bool boot_put_command_line(const struct boot_source *source,
                           struct guest_ram *ram, uint64_t limit,
                           struct vmm_error *error);

/*
 * Puts the initrd at the highest page that ends at or below `ceiling` (an
 * exclusive guest-physical address) and starts at or above `floor`.
 */
bool boot_put_initrd(const struct boot_source *source, struct guest_ram *ram,
                     uint64_t floor, uint64_t ceiling, uint64_t *gpa,
                     struct vmm_error *error);

/* Flat segments; `long_mode` makes the code segment a 64-bit one. */
bool boot_put_gdt(struct guest_ram *ram, bool long_mode,
                  struct vmm_error *error);

#endif
