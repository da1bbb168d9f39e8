/* Symbols found in an image and in a module's tables, whole and damaged. */
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include <kvmgdb/linux.h>

#include "../guest.h"
#include "../harness.h"
#include "kallsyms_image.h"

static void destroy(struct kvmgdb_symbols **symbols) {
  kvmgdb_symbols_destroy(*symbols);
}
#define SYMBOLS __attribute__((cleanup(destroy))) struct kvmgdb_symbols

static enum kvmgdb_status decode(const struct kallsyms_image *image,
                                 struct kvmgdb_kallsyms *found,
                                 struct kvmgdb_symbols **out) {
  /* A copy of just this size, so that a sanitizer sees what lies beyond. */
  uint8_t *copy = malloc(image->length);
  memcpy(copy, image->bytes, image->length);
  enum kvmgdb_status status = kvmgdb_symbols_from_kallsyms(
      copy, image->length, IMAGE_RODATA, IMAGE_BASE, found, out, NULL);
  free(copy);
  return status;
}

static void check_symbols(const struct kvmgdb_symbols *symbols,
                          enum kallsyms_layout layout, size_t count) {
  CHECK_EQUAL(kvmgdb_symbols_count(symbols), count);
  for (size_t i = 0; i < count; i++) {
    char name[300];
    struct kvmgdb_symbol symbol;
    image_name(i, name);
    CHECK_EQUAL(kvmgdb_symbols_get(symbols, i, &symbol, NULL), KVMGDB_OK);
    CHECK_EQUAL(symbol.address, image_address(layout, i));
    CHECK_EQUAL(symbol.type, name[0]);
    CHECK(strcmp(symbol.name, name + 1) == 0);
  }
}

TEST(kallsyms, every_layout) {
  static const int encodings[LAYOUTS] = {
      KVMGDB_KALLSYMS_ABSOLUTE_PERCPU, KVMGDB_KALLSYMS_ABSOLUTE_PERCPU,
      KVMGDB_KALLSYMS_ABSOLUTE_PERCPU, KVMGDB_KALLSYMS_ABSOLUTE_PERCPU,
      KVMGDB_KALLSYMS_BASE_RELATIVE,   KVMGDB_KALLSYMS_PLACE_RELATIVE};
  /* Counts that are and are not multiples of a marker's and an alignment's. */
  static const size_t counts[] = {768, 1001, 1024, 1025, 1299};
  static struct kallsyms_image image;
  for (int layout = 0; layout < LAYOUTS; layout++)
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
      SYMBOLS *symbols = NULL;
      struct kvmgdb_kallsyms found;
      image_build(&image, (enum kallsyms_layout)layout, counts[i]);
      CHECK_EQUAL(decode(&image, &found, &symbols), KVMGDB_OK);
      CHECK_EQUAL(found.num_syms, counts[i]);
      CHECK_EQUAL(found.encoding, encodings[layout]);
      check_symbols(symbols, (enum kallsyms_layout)layout, counts[i]);
    }
}

TEST(kallsyms, lookup) {
  static struct kallsyms_image image;
  SYMBOLS *symbols = NULL;
  struct kvmgdb_symbol symbol;
  size_t index = 0;
  image_build(&image, LAYOUT_7_2, 1000);
  CHECK_EQUAL(decode(&image, NULL, &symbols), KVMGDB_OK);
  /* Of those at one address, the first. */
  CHECK_EQUAL(kvmgdb_symbols_at(symbols, IMAGE_BASE + 7, &symbol, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(symbol.index, 0);
  CHECK_EQUAL(kvmgdb_symbols_at(symbols, IMAGE_BASE + 0x30, &symbol, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(symbol.index, IMAGE_PERCPU + 1);
  CHECK_EQUAL(kvmgdb_symbols_at(symbols, UINT64_MAX, &symbol, NULL), KVMGDB_OK);
  CHECK_EQUAL(symbol.index, 999);
  CHECK_EQUAL(kvmgdb_symbols_at(symbols, IMAGE_BASE - 1, &symbol, NULL),
              KVMGDB_ERR_NOT_FOUND);
  CHECK_EQUAL(
      kvmgdb_symbols_named(symbols, "777_symbol", &index, &symbol, NULL),
      KVMGDB_OK);
  CHECK_EQUAL(symbol.index, 777);
  CHECK_EQUAL(
      kvmgdb_symbols_named(symbols, "777_symbol", &index, &symbol, NULL),
      KVMGDB_ERR_NOT_FOUND);
  CHECK_EQUAL(kvmgdb_symbols_get(symbols, 1000, &symbol, NULL),
              KVMGDB_ERR_NOT_FOUND);
}

TEST(kallsyms, nothing_there) {
  static struct kallsyms_image image;
  SYMBOLS *symbols = NULL;
  image_build(&image, LAYOUT_5_10, 1000);
  image.length = image.tables;
  CHECK_EQUAL(decode(&image, NULL, &symbols), KVMGDB_ERR_NOT_FOUND);
  image.length = 0;
  CHECK_EQUAL(decode(&image, NULL, &symbols), KVMGDB_ERR_NOT_FOUND);
}

/* Truncated anywhere: not found, or only what lies behind is cut off. */
TEST(kallsyms, truncated) {
  static struct kallsyms_image image;
  for (int layout = 0; layout < LAYOUTS; layout++) {
    image_build(&image, (enum kallsyms_layout)layout, 600);
    size_t length = image.length;
    for (image.length = image.tables; image.length < length;
         image.length += 61) {
      SYMBOLS *symbols = NULL;
      if (decode(&image, NULL, &symbols) == KVMGDB_OK)
        CHECK_EQUAL(kvmgdb_symbols_count(symbols), 600);
    }
  }
}

static void damage(struct kallsyms_image *image, uint64_t *state) {
  size_t changes = 1 + random_next(state) % 6;
  while (changes--) {
    size_t at =
        image->tables + random_next(state) % (image->length - image->tables);
    uint64_t value = random_next(state);
    switch (value % 4) {
    case 0:
      image->bytes[at] ^= (uint8_t)(1u << (value >> 8) % 8);
      break;
    case 1:
      image->bytes[at] = 0xff;
      break;
    case 2:
      memset(image->bytes + at, (int)(value >> 16),
             (value >> 8) % 16 < image->length - at ? (value >> 8) % 16 : 0);
      break;
    default:
      image->bytes[at] = (uint8_t)(value >> 8);
    }
  }
}

/* Whatever stands there, every symbol that is given out can be read. */
TEST(kallsyms, damaged) {
  static struct kallsyms_image image;
  uint64_t state = 88172645463325252u;
  for (int round = 0; round < 1500; round++) {
    SYMBOLS *symbols = NULL;
    image_build(&image, (enum kallsyms_layout)(round % LAYOUTS), 600);
    damage(&image, &state);
    if (decode(&image, NULL, &symbols) != KVMGDB_OK)
      continue;
    for (size_t i = 0; i < kvmgdb_symbols_count(symbols); i++) {
      struct kvmgdb_symbol symbol;
      CHECK_EQUAL(kvmgdb_symbols_get(symbols, i, &symbol, NULL), KVMGDB_OK);
      CHECK(strlen(symbol.name) <= 512);
    }
  }
}

TEST(kallsyms, of_a_module) {
  const char strings[] = "\0init\0data\0unfinished";
  const Elf64_Sym table[] = {{.st_name = 0, .st_shndx = 1},
                             {.st_name = 6, .st_shndx = 2, .st_value = 0x20},
                             {.st_name = 1, .st_shndx = 1, .st_value = 0x10},
                             {.st_name = 1, .st_shndx = SHN_UNDEF},
                             {.st_name = 99, .st_shndx = 1}};
  SYMBOLS *symbols = NULL;
  struct kvmgdb_symbol symbol;
  CHECK_EQUAL(kvmgdb_symbols_from_elf(table, 5, strings, sizeof(strings),
                                      "?dtU?", &symbols, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_symbols_count(symbols), 2);
  CHECK_EQUAL(kvmgdb_symbols_get(symbols, 0, &symbol, NULL), KVMGDB_OK);
  CHECK(strcmp(symbol.name, "init") == 0 && symbol.type == 't');
  CHECK_EQUAL(kvmgdb_symbols_get(symbols, 1, &symbol, NULL), KVMGDB_OK);
  CHECK(strcmp(symbol.name, "data") == 0 && symbol.address == 0x20);

  const Elf64_Sym open[] = {{.st_name = 11, .st_shndx = 1}};
  struct kvmgdb_symbols *none = NULL;
  CHECK_EQUAL(kvmgdb_symbols_from_elf(open, 1, strings, sizeof(strings) - 1,
                                      NULL, &none, NULL),
              KVMGDB_ERR_MALFORMED);
}
