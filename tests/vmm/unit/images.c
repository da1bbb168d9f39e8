#include "images.h"

#include "harness.h"

#include <stdlib.h>
#include <string.h>

struct image image_copy(const void *bytes, size_t size) {
  struct image image = {malloc(size ? size : 1), size};
  CHECK(image.bytes);
  memcpy(image.bytes, bytes, size);
  return image;
}

struct image image_guest(const char *name) {
  char path[512];
  snprintf(path, sizeof(path), "%s/%s", GUESTS, name);
  FILE *file = fopen(path, "rb");
  if (!file)
    harness_fail(__FILE__, __LINE__, "cannot open %s", path);
  static uint8_t buffer[1 << 20];
  size_t size = fread(buffer, 1, sizeof(buffer), file);
  fclose(file);
  CHECK(size > 0 && size < sizeof(buffer));
  return image_copy(buffer, size);
}

struct image image_elf64(void) {
  struct {
    Elf64_Ehdr header;
    Elf64_Phdr load;
    uint8_t code[16];
  } file = {
      .header =
          {
              .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
                          ELFDATA2LSB, EV_CURRENT},
              .e_type = ET_EXEC,
              .e_machine = EM_X86_64,
              .e_entry = 0x100000,
              .e_phoff = sizeof(Elf64_Ehdr),
              .e_phentsize = sizeof(Elf64_Phdr),
              .e_phnum = 1,
          },
      .load =
          {
              .p_type = PT_LOAD,
              .p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
              .p_vaddr = 0xffffffff80100000,
              .p_paddr = 0x100000,
              .p_filesz = 16,
              .p_memsz = 4096,
          },
      .code = {0xf4, 0xeb, 0xfd},
  };
  return image_copy(&file, sizeof(file));
}

void image_free(struct image *image) { free(image->bytes); }

void ram_free(struct guest_ram *ram) { guest_ram_destroy(ram); }

struct guest_ram ram_create(uint64_t mebibytes) {
  struct guest_ram ram;
  struct vmm_error error;
  CHECK(guest_ram_create(mebibytes << 20, &ram, &error));
  return ram;
}

bool boot_image(const struct image *image, enum boot_protocol protocol,
                struct guest_ram *ram, struct boot_entry *entry,
                struct vmm_error *error) {
  struct boot_source source = {
      .kernel = image->bytes,
      .kernel_size = image->size,
      .command_line = protocol == BOOT_FLAT ? "" : "x",
      .protocol = protocol,
      .flat_address = 0x7c00,
  };
  error->text[0] = '\0';
  return boot_load(&source, ram, entry, error);
}

void check_refused(const struct image *image, enum boot_protocol protocol,
                   const char *words) {
  RAM ram = ram_create(64);
  struct boot_entry entry;
  struct vmm_error error;
  CHECK(!boot_image(image, protocol, &ram, &entry, &error));
  if (!strstr(error.text, words))
    harness_fail(__FILE__, __LINE__, "\"%s\" does not say \"%s\"", error.text,
                 words);
}
