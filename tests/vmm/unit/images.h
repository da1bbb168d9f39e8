/* Files to boot: those of tests/guests/freestanding, and small made-up ones. */
#ifndef KVMGDB_TESTS_VMM_IMAGES_H
#define KVMGDB_TESTS_VMM_IMAGES_H

#include "boot.h"

#include <elf.h>
#include <stddef.h>
#include <stdint.h>

struct image {
  uint8_t *bytes;
  size_t size;
};

/* A copy in a block of exactly its size, so that ASan sees a read past it. */
struct image image_copy(const void *bytes, size_t size);
/* A file of tests/guests/freestanding/build. */
struct image image_guest(const char *name);
/* One PT_LOAD of `code` at 1 MiB, entry there. */
struct image image_elf64(void);
void image_free(struct image *image);
#define IMAGE __attribute__((cleanup(image_free))) struct image

void ram_free(struct guest_ram *ram);
#define RAM __attribute__((cleanup(ram_free))) struct guest_ram
struct guest_ram ram_create(uint64_t mebibytes);

/* boot_load with a command line "x" and no initrd. */
bool boot_image(const struct image *image, enum boot_protocol protocol,
                struct guest_ram *ram, struct boot_entry *entry,
                struct vmm_error *error);

/* Boots and fails the test unless the error says `words`. */
void check_refused(const struct image *image, enum boot_protocol protocol,
                   const char *words);

#endif
