/* A kernel image that holds symbols as scripts/kallsyms.c writes them. */
#ifndef KVMGDB_TESTS_KALLSYMS_IMAGE_H
#define KVMGDB_TESTS_KALLSYMS_IMAGE_H

#include <stddef.h>
#include <stdint.h>

/* The orders of the tables, by the first kernel that had them. */
enum kallsyms_layout {
  LAYOUT_4_18, /* as 5.10, with markers of 8 bytes */
  LAYOUT_5_10, /* offsets and relative_base first */
  LAYOUT_6_1,  /* the same, with 3 bytes per symbol behind the markers */
  LAYOUT_6_12, /* offsets and relative_base last */
  LAYOUT_6_16, /* the same, with offsets from the base: no per-CPU ones */
  LAYOUT_7_2,  /* place-relative offsets last, 4-byte alignment */
};
#define LAYOUTS 6

#define IMAGE_SIZE (96u << 10)
#define IMAGE_BASE UINT64_C(0xffffffff9a600000)
#define IMAGE_RODATA                                                           \
  UINT64_C(0xffffffff9b000000) /* of the image's first byte */
#define IMAGE_PERCPU 40 /* the first symbols, where they are zero-based */

struct kallsyms_image {
  uint8_t bytes[IMAGE_SIZE];
  size_t length;
  size_t tables; /* where they begin */
  size_t count;
};

/* `count` symbols: see image_address and image_name. */
void image_build(struct kallsyms_image *image, enum kallsyms_layout layout,
                 size_t count);

/* What symbol `index` is, in the order of addresses. */
uint64_t image_address(enum kallsyms_layout layout, size_t index);
/* Type and name; some names have 128 tokens and more. */
void image_name(size_t index, char name[300]);

#endif
