#include "harness.h"
#include "images.h"

#include <string.h>

#define MAGIC 0x1badb002U

/* A multiboot header with addresses, then 64 bytes of code. */
struct kernel {
  uint32_t magic, flags, checksum;
  uint32_t header_address, load_address, load_end, bss_end, entry;
  uint8_t code[64];
};

static struct image make(struct kernel kernel) {
  kernel.magic = MAGIC;
  kernel.checksum = -(MAGIC + kernel.flags);
  return image_copy(&kernel, sizeof(kernel));
}

static const struct kernel good = {
    .flags = 0x10003,
    .header_address = 0x100000,
    .load_address = 0x100000,
    .bss_end = 0x200000,
    .entry = 0x100020,
    .code = {0xf4},
};

static void refused(struct kernel kernel, const char *words) {
  IMAGE image = make(kernel);
  check_refused(&image, BOOT_AUTO, words);
}

TEST(multiboot, addresses_in_the_header_are_followed) {
  IMAGE image = make(good);
  RAM ram = ram_create(64);
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(boot_image(&image, BOOT_AUTO, &ram, &entry, &error));
  CHECK_EQUAL(entry.protocol, BOOT_MULTIBOOT);
  CHECK_EQUAL(entry.mode, CPU_PROTECTED32);
  CHECK_EQUAL(entry.ip, 0x100020);
  CHECK_EQUAL(entry.rax, 0x2badb002);
  CHECK_EQUAL(*(uint8_t *)guest_ram_at(&ram, 0x100020, 1), 0xf4);
}

TEST(multiboot, an_elf_kernel_is_loaded_by_its_segments) {
  IMAGE image = image_guest("chain.mb");
  RAM ram = ram_create(64);
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(boot_image(&image, BOOT_AUTO, &ram, &entry, &error));
  CHECK_EQUAL(entry.protocol, BOOT_MULTIBOOT);
  CHECK_EQUAL(entry.ip, 0x100040);
}

TEST(multiboot, bad_headers_are_refused_with_their_reason) {
  struct kernel kernel = good;
  kernel.flags |= 0x8;
  refused(kernel, "requires features 0x8");
  kernel.flags = good.flags | 0x4;
  refused(kernel, "requires a video mode");
  kernel = good;
  kernel.load_address = 0x100001;
  refused(kernel, "lies before its file");
  kernel.load_address = 0xfffff;
  refused(kernel, "lies before its file");
  kernel = good;
  kernel.load_end = 0x100000 + sizeof(kernel) + 1;
  refused(kernel, "truncated");
  kernel.load_end = 0xfffff;
  refused(kernel, "truncated");
  kernel = good;
  kernel.load_address = kernel.header_address = 0x8000;
  kernel.entry = 0x8020;
  refused(kernel, "below 1 MiB");
  kernel = good;
  kernel.bss_end = UINT32_MAX;
  refused(kernel, "does not fit into guest memory");
  kernel = good;
  kernel.load_address = kernel.header_address = 0xfffffff0;
  refused(kernel, "does not fit into guest memory");
  kernel = good;
  kernel.entry = 0x100000 + sizeof(kernel);
  refused(kernel, "entry 0x100060 lies outside");
  kernel.entry = 0xfffff;
  refused(kernel, "entry 0xfffff lies outside");
  kernel = good;
  kernel.flags = 0x3;
  refused(kernel, "not an ELF file");
}

TEST(multiboot, a_header_after_8_kib_is_none) {
  static uint8_t file[16384];
  IMAGE small = make(good);
  memcpy(file + 8192, small.bytes, small.size);
  IMAGE image = image_copy(file, sizeof(file));
  CHECK(!boot_is_multiboot(image.bytes, image.size));
  memcpy(file + 8192 - 12, small.bytes, small.size);
  IMAGE in_reach = image_copy(file, sizeof(file));
  CHECK(boot_is_multiboot(in_reach.bytes, in_reach.size));
}
