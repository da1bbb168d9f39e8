#include "harness.h"
#include "images.h"

#include <asm/bootparam.h>
#include <string.h>

#define PREFERRED 0x200000

static struct setup_header *header(struct image *image) {
  return (struct setup_header *)(image->bytes + 0x1f1);
}

static struct boot_params *load(const struct image *image,
                                struct boot_source source,
                                struct guest_ram *ram,
                                struct boot_entry *entry) {
  struct vmm_error error;
  source.kernel = image->bytes;
  source.kernel_size = image->size;
  if (!boot_load(&source, ram, entry, &error))
    harness_fail(__FILE__, __LINE__, "%s", error.text);
  return guest_ram_at(ram, entry->rsi, sizeof(struct boot_params));
}

TEST(bzimage, the_zero_page_says_what_the_protocol_wants) {
  IMAGE image = image_guest("bootinfo-linux.bzimage");
  RAM ram = ram_create(5 << 10);
  struct boot_entry entry;
  const uint8_t initrd[5000] = {1, 2, 3};
  struct boot_params *params =
      load(&image,
           (struct boot_source){.initrd = initrd,
                                .initrd_size = sizeof(initrd),
                                .command_line = "console=ttyS0",
                                .rsdp = 0xe0000},
           &ram, &entry);
  CHECK_EQUAL(entry.protocol, BOOT_BZIMAGE);
  CHECK_EQUAL(entry.mode, CPU_LONG64);
  CHECK_EQUAL(entry.ip, PREFERRED + 0x200);
  CHECK_EQUAL(params->sentinel, 0);
  CHECK_EQUAL(params->hdr.boot_flag, 0xaa55);
  CHECK_EQUAL(params->hdr.type_of_loader, 0xff);
  CHECK_EQUAL(params->hdr.code32_start, PREFERRED);
  CHECK_EQUAL(params->hdr.version, header(&image)->version);
  CHECK_EQUAL(params->hdr.init_size, header(&image)->init_size);
  CHECK_EQUAL(params->acpi_rsdp_addr, 0xe0000);
  CHECK(strcmp(guest_ram_at(&ram, params->hdr.cmd_line_ptr, 14),
               "console=ttyS0") == 0);
  /* The initrd: highest page below initrd_addr_max + 1 = 2 GiB. */
  CHECK_EQUAL(params->hdr.ramdisk_image, 0x80000000 - 0x2000);
  CHECK_EQUAL(params->hdr.ramdisk_size, sizeof(initrd));
  CHECK(memcmp(guest_ram_at(&ram, params->hdr.ramdisk_image, sizeof(initrd)),
               initrd, sizeof(initrd)) == 0);
  CHECK_EQUAL(params->e820_entries, 5);
  CHECK_EQUAL(params->e820_table[4].addr, 4ULL << 30);
  CHECK_EQUAL(params->e820_table[4].size, 2ULL << 30);
  CHECK_EQUAL(params->e820_table[4].type, 1);
}

TEST(bzimage, page_tables_map_4_gib_at_their_own_addresses) {
  IMAGE image = image_guest("bootinfo-linux.bzimage");
  RAM ram = ram_create(64);
  struct boot_entry entry;
  load(&image, (struct boot_source){.command_line = ""}, &ram, &entry);
  for (uint64_t address = 0; address < 4ULL << 30; address += 2 << 20) {
    uint64_t table = BOOT_PAGE_TABLES, value = 0;
    for (int shift = 39; shift >= 21; shift -= 9) {
      const uint64_t *page = guest_ram_at(&ram, table, 4096);
      CHECK(page);
      value = page[address >> shift & 511];
      CHECK_EQUAL(value & 3, 3);
      table = value & ~0xfffULL;
    }
    CHECK_EQUAL(value, address | 0x83);
  }
}

TEST(bzimage, the_setup_header_ends_where_its_jump_says) {
  IMAGE image = image_guest("bootinfo-linux.bzimage");
  RAM ram = ram_create(64);
  struct boot_entry entry;
  /* Up to and including xloadflags (0x236): nothing after it is the header. */
  image.bytes[0x201] = 0x238 - 0x202;
  struct vmm_error error;
  CHECK(!boot_image(&image, BOOT_AUTO, &ram, &entry, &error));
  CHECK(strstr(error.text, "loaded at 0, below 1 MiB"));
}

TEST(bzimage, bad_headers_are_refused_with_their_reason) {
  IMAGE image = image_guest("bootinfo-linux.bzimage");
  struct setup_header *setup = header(&image), good = *setup;
  setup->version = 0x020b;
  check_refused(&image, BOOT_AUTO, "2.11 has no 64-bit entry");
  *setup = good;
  setup->xloadflags = 0;
  check_refused(&image, BOOT_AUTO, "no 64-bit entry");
  *setup = good;
  setup->loadflags = 0;
  check_refused(&image, BOOT_AUTO, "zImage");
  *setup = good;
  setup->setup_sects = 255;
  check_refused(&image, BOOT_AUTO, "truncated");
  *setup = good;
  setup->syssize = UINT32_MAX;
  check_refused(&image, BOOT_AUTO, "truncated");
  *setup = good;
  setup->pref_address = 0x1000;
  check_refused(&image, BOOT_AUTO, "below 1 MiB");
  setup->pref_address = UINT64_MAX;
  check_refused(&image, BOOT_AUTO, "give the guest more");
  *setup = good;
  setup->init_size = UINT32_MAX;
  check_refused(&image, BOOT_AUTO, "give the guest more");
  *setup = good;
  setup->cmdline_size = 0;
  check_refused(&image, BOOT_AUTO, "command line of 1 bytes is longer");
}

TEST(bzimage, an_initrd_that_does_not_fit_is_refused) {
  IMAGE image = image_guest("bootinfo-linux.bzimage");
  RAM ram = ram_create(64);
  static uint8_t initrd[62 << 20];
  struct boot_source source = {.kernel = image.bytes,
                               .kernel_size = image.size,
                               .initrd = initrd,
                               .initrd_size = sizeof(initrd),
                               .command_line = ""};
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(!boot_load(&source, &ram, &entry, &error));
  CHECK(strstr(error.text, "initrd of 65011712 bytes does not fit"));
  /* The limit is the kernel's own, however much memory there is. */
  header(&image)->initrd_addr_max = 0;
  source.initrd_size = 1;
  CHECK(!boot_load(&source, &ram, &entry, &error));
  CHECK(strstr(error.text, "does not fit"));
  header(&image)->initrd_addr_max = UINT32_MAX;
  CHECK(boot_load(&source, &ram, &entry, &error));
}
