/*
 * Files that are cut off or changed anywhere: the loader either refuses them
 * in words or starts inside of memory; the sanitizers watch the rest.
 */
#include "harness.h"
#include "images.h"

#include <string.h>

#define HEADERS 1024
#define RANDOM_ROUNDS 20000

static void try_once(const struct image *image, enum boot_protocol protocol,
                     struct guest_ram *ram) {
  struct boot_entry entry;
  struct vmm_error error;
  if (!boot_image(image, protocol, ram, &entry, &error)) {
    CHECK(error.text[0]);
    return;
  }
  CHECK(guest_ram_at(ram, entry.ip + ((uint64_t)entry.segment << 4), 1));
}

static void try_all_protocols(const struct image *image,
                              struct guest_ram *ram) {
  for (enum boot_protocol protocol = BOOT_AUTO; protocol <= BOOT_FLAT;
       protocol++)
    try_once(image, protocol, ram);
}

static void cut_off(const char *name) {
  IMAGE whole = image_guest(name);
  RAM ram = ram_create(64);
  for (size_t size = 0; size < whole.size; size += size < 8192 ? 1 : 61) {
    IMAGE part = image_copy(whole.bytes, size);
    try_once(&part, BOOT_AUTO, &ram);
  }
}

static void change_bytes(const char *name) {
  static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
  IMAGE image = image_guest(name);
  RAM ram = ram_create(64);
  for (size_t at = 0; at < HEADERS && at < image.size; at++) {
    uint8_t original = image.bytes[at];
    for (size_t i = 0; i < sizeof(values); i++) {
      image.bytes[at] = values[i];
      try_all_protocols(&image, &ram);
    }
    image.bytes[at] = original;
  }
}

/* xorshift64: the same bytes in every run. */
static uint64_t next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static void change_at_random(const char *name) {
  IMAGE image = image_guest(name);
  IMAGE original = image_copy(image.bytes, image.size);
  RAM ram = ram_create(64);
  uint64_t state = 0x9e3779b97f4a7c15;
  for (int i = 0; i < RANDOM_ROUNDS; i++) {
    for (uint64_t count = next(&state) % 8 + 1; count > 0; count--) {
      size_t reach = next(&state) % 4 ? HEADERS : image.size;
      image.bytes[next(&state) % (reach < image.size ? reach : image.size)] =
          (uint8_t)next(&state);
    }
    try_once(&image, BOOT_AUTO, &ram);
    if (i % 4 == 3)
      memcpy(image.bytes, original.bytes, image.size);
  }
}

#define HOSTILE(kind, name)                                                    \
  TEST(hostile, kind##_is_cut_off) { cut_off(name); }                          \
  TEST(hostile, kind##_has_a_changed_byte) { change_bytes(name); }             \
  TEST(hostile, kind##_has_changed_bytes) { change_at_random(name); }

HOSTILE(pvh, "bootinfo.elf")
HOSTILE(multiboot, "bootinfo.mb")
HOSTILE(linux, "bootinfo-linux.elf")
HOSTILE(bzimage, "bootinfo-linux.bzimage")
