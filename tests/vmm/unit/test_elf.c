#include "elf_image.h"
#include "harness.h"
#include "images.h"

#include <string.h>

static Elf64_Ehdr *header(struct image *image) {
  return (Elf64_Ehdr *)image->bytes;
}

static Elf64_Phdr *segment(struct image *image) {
  return (Elf64_Phdr *)(image->bytes + sizeof(Elf64_Ehdr));
}

TEST(elf, a_segment_is_loaded_at_its_physical_address) {
  IMAGE image = image_elf64();
  RAM ram = ram_create(64);
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(boot_image(&image, BOOT_AUTO, &ram, &entry, &error));
  CHECK_EQUAL(entry.protocol, BOOT_LINUX);
  CHECK_EQUAL(entry.mode, CPU_LONG64);
  CHECK_EQUAL(entry.ip, 0x100000);
  CHECK(memcmp(guest_ram_at(&ram, 0x100000, 3), "\xf4\xeb\xfd", 3) == 0);
}

TEST(elf, a_virtual_entry_is_translated) {
  IMAGE image = image_elf64();
  header(&image)->e_entry = 0xffffffff80100004;
  RAM ram = ram_create(64);
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(boot_image(&image, BOOT_AUTO, &ram, &entry, &error));
  CHECK_EQUAL(entry.ip, 0x100004);
}

TEST(elf, the_pvh_note_is_found_in_a_guest) {
  IMAGE image = image_guest("chain.elf");
  struct elf_image elf;
  struct vmm_error error;
  uint32_t entry;
  CHECK(elf_image_parse(image.bytes, image.size, &elf, &error));
  CHECK(elf_image_pvh_entry(&elf, &entry));
  CHECK_EQUAL(entry, 0x100040);
}

/* `bytes` is a note segment in a file of that size. */
static bool has_pvh_note(const void *bytes, size_t size) {
  IMAGE image = image_copy(bytes, size);
  struct elf_image elf = {
      .file = image.bytes, .file_size = size, .note_count = 1};
  elf.note[0].file_size = size;
  uint32_t entry;
  return elf_image_pvh_entry(&elf, &entry);
}

TEST(elf, notes_that_lie_about_their_size_are_passed_over) {
  const uint32_t good[] = {4, 4, 18, 0x6e6558, 0x100000};
  CHECK(has_pvh_note(good, sizeof(good)));
  const uint32_t second[] = {4, 1, 5, 0x6e6558, 0, 4, 4, 18, 0x6e6558, 1};
  CHECK(has_pvh_note(second, sizeof(second)));
  const uint32_t long_name[] = {0xffffffff, 4, 18, 0x6e6558, 0};
  CHECK(!has_pvh_note(long_name, sizeof(long_name)));
  const uint32_t long_descriptor[] = {4, 0xfffffffd, 18, 0x6e6558, 0};
  CHECK(!has_pvh_note(long_descriptor, sizeof(long_descriptor)));
  const uint32_t odd_descriptor[] = {4, 2, 18, 0x6e6558, 0};
  CHECK(!has_pvh_note(odd_descriptor, sizeof(odd_descriptor)));
  const uint32_t above[] = {4, 8, 18, 0x6e6558, 0, 1};
  CHECK(!has_pvh_note(above, sizeof(above)));
  for (size_t size = 0; size < sizeof(good); size++)
    CHECK(!has_pvh_note(good, size));
}

TEST(elf, bad_headers_are_refused_with_their_reason) {
  IMAGE image = image_elf64();
  header(&image)->e_machine = EM_AARCH64;
  check_refused(&image, BOOT_AUTO, "for machine 183");
  header(&image)->e_machine = EM_X86_64;
  header(&image)->e_type = ET_REL;
  check_refused(&image, BOOT_AUTO, "no executable");
  header(&image)->e_type = ET_EXEC;
  header(&image)->e_phnum = 65;
  check_refused(&image, BOOT_AUTO, "bad program header table");
  header(&image)->e_phnum = 0;
  check_refused(&image, BOOT_AUTO, "bad program header table");
  header(&image)->e_phnum = 1;
  header(&image)->e_phoff = UINT64_MAX - 8;
  check_refused(&image, BOOT_AUTO, "program headers lie beyond its end");
  header(&image)->e_phoff = sizeof(Elf64_Ehdr);
  header(&image)->e_ident[EI_DATA] = ELFDATA2MSB;
  check_refused(&image, BOOT_AUTO, "little-endian");
}

TEST(elf, bad_segments_are_refused_with_their_reason) {
  IMAGE image = image_elf64();
  Elf64_Phdr *load = segment(&image);
  load->p_offset = UINT64_MAX;
  check_refused(&image, BOOT_AUTO, "segment 0 lies beyond its end");
  load->p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr);
  load->p_filesz = 17;
  check_refused(&image, BOOT_AUTO, "segment 0 lies beyond its end");
  load->p_filesz = 16;
  load->p_memsz = 15;
  check_refused(&image, BOOT_AUTO, "larger in the file than in memory");
  load->p_memsz = UINT64_MAX;
  check_refused(&image, BOOT_AUTO, "does not fit into guest memory");
  load->p_memsz = 4096;
  load->p_paddr = UINT64_MAX - 100;
  check_refused(&image, BOOT_AUTO, "lies outside of what is loaded");
  header(&image)->e_entry = load->p_paddr;
  check_refused(&image, BOOT_AUTO, "lies above 4 GiB");
  header(&image)->e_entry = 0x10000;
  load->p_paddr = 0x10000;
  check_refused(&image, BOOT_AUTO, "over the boot information");
  header(&image)->e_entry = 0xf0000;
  load->p_paddr = 0xf0000;
  check_refused(&image, BOOT_AUTO, "over the firmware's memory");
  load->p_type = PT_NULL;
  check_refused(&image, BOOT_AUTO, "nothing to load");
}

TEST(elf, a_segment_in_the_hole_below_4_gib_is_refused) {
  IMAGE image = image_elf64();
  segment(&image)->p_paddr = 0xfee00000;
  header(&image)->e_entry = 0xfee00000;
  check_refused(&image, BOOT_AUTO, "does not fit into guest memory");
}

TEST(elf, a_protocol_that_a_file_does_not_offer_is_refused) {
  IMAGE image = image_elf64();
  check_refused(&image, BOOT_PVH, "no PVH entry note");
  check_refused(&image, BOOT_MULTIBOOT, "no multiboot header");
  check_refused(&image, BOOT_BZIMAGE, "not a bzImage");
  IMAGE text = image_copy("hello, world", 12);
  check_refused(&text, BOOT_AUTO, "--flat ADDRESS");
  IMAGE elf32 = image_guest("chain.mb");
  check_refused(&elf32, BOOT_LINUX, "needs a 64-bit ELF");
}
