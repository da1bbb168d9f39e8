#include "kallsyms_image.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define TOKENS 256
/* A token of two letters, beside those that stand for themselves. */
#define PAIR_TOKEN 1
#define PAIR "Ts"

static void put(struct kallsyms_image *image, const void *data, size_t size) {
  memcpy(image->bytes + image->length, data, size);
  image->length += size;
}

static void put_u32(struct kallsyms_image *image, uint32_t value) {
  put(image, &value, sizeof(value));
}

static void pad(struct kallsyms_image *image, size_t alignment) {
  while (image->length % alignment)
    image->bytes[image->length++] = 0;
}

uint64_t image_address(enum kallsyms_layout layout, size_t index) {
  if (index >= IMAGE_PERCPU)
    return IMAGE_BASE + 0x30 * (index - IMAGE_PERCPU);
  /* Per-CPU symbols; since 6.15 they are part of the image. */
  return layout >= LAYOUT_6_16 ? IMAGE_BASE : 0x40 * index;
}

void image_name(size_t index, char name[300]) {
  if (index == IMAGE_PERCPU)
    snprintf(name, 300, "T_text");
  else if (index % 97 == 5)
    snprintf(name, 300, "Tsome_name_so_long_that_its_length_takes_two_%0200zu",
             index);
  else
    snprintf(name, 300, "%c%zu_symbol", "TtDr"[index % 4], index);
}

static void put_token_table(struct kallsyms_image *image) {
  uint16_t index[TOKENS];
  size_t start = image->length;
  for (int token = 0; token < TOKENS; token++) {
    char text[] = {(char)token, 0};
    index[token] = (uint16_t)(image->length - start);
    if (token == PAIR_TOKEN)
      put(image, PAIR, sizeof(PAIR));
    else if (token < ' ' || token > '~')
      put(image, "unused", sizeof("unused"));
    else
      put(image, text, sizeof(text));
  }
  pad(image, 8);
  put(image, index, sizeof(index));
}

static void put_name(struct kallsyms_image *image, size_t index) {
  char name[300];
  uint8_t tokens[300];
  size_t length = 0;
  image_name(index, name);
  for (const char *at = name; *at; at++)
    if (strncmp(at, PAIR, strlen(PAIR)) == 0) {
      tokens[length++] = PAIR_TOKEN;
      at++;
    } else {
      tokens[length++] = (uint8_t)*at;
    }
  uint8_t low = (uint8_t)(length < 0x80 ? length : (length & 0x7f) | 0x80);
  put(image, &low, 1);
  if (length >= 0x80) {
    uint8_t high = (uint8_t)(length >> 7);
    put(image, &high, 1);
  }
  put(image, tokens, length);
}

static void put_names(struct kallsyms_image *image, size_t alignment,
                      size_t marker_size) {
  uint64_t markers[64];
  size_t start = image->length, count = 0;
  for (size_t i = 0; i < image->count; i++) {
    if (i % 256 == 0)
      markers[count++] = image->length - start;
    put_name(image, i);
  }
  pad(image, alignment);
  for (size_t i = 0; i < count; i++)
    put(image, &markers[i], marker_size);
}

static void put_offsets(struct kallsyms_image *image,
                        enum kallsyms_layout layout) {
  for (size_t i = 0; i < image->count; i++) {
    uint64_t address = image_address(layout, i);
    if (layout == LAYOUT_7_2)
      put_u32(image, (uint32_t)(address - (IMAGE_RODATA + image->length)));
    else if (layout == LAYOUT_6_16)
      put_u32(image, (uint32_t)(address - IMAGE_BASE));
    else if (i < IMAGE_PERCPU)
      put_u32(image, (uint32_t)address);
    else
      put_u32(image, (uint32_t)(IMAGE_BASE - 1 - address));
  }
  pad(image, 8);
}

void image_build(struct kallsyms_image *image, enum kallsyms_layout layout,
                 size_t count) {
  bool first = layout <= LAYOUT_6_1;
  size_t alignment = layout == LAYOUT_7_2 ? 4 : 8;
  uint64_t base = IMAGE_BASE;
  memset(image, 0, sizeof(*image));
  image->count = count;
  /* Other read-only data, with the digits in it for a false start. */
  for (image->length = 0; image->length < 4096; image->length++)
    image->bytes[image->length] = (uint8_t)(image->length * 37 % 251);
  memcpy(image->bytes + 1000, "0\0001\0002\0003\0004\0005\0006\0007\0008\0009",
         20);
  pad(image, 8);
  image->tables = image->length;
  if (first) {
    put_offsets(image, layout);
    put(image, &base, sizeof(base));
  }
  put_u32(image, (uint32_t)count);
  pad(image, alignment);
  put_names(image, alignment, layout == LAYOUT_4_18 ? 8 : 4);
  if (layout == LAYOUT_6_1)
    for (size_t i = 0; i < 3 * count; i++)
      image->bytes[image->length++] = (uint8_t)(i * 73);
  pad(image, alignment);
  put_token_table(image);
  if (!first) {
    put_offsets(image, layout);
    if (layout != LAYOUT_7_2)
      put(image, &base, sizeof(base));
  }
  image->length += 64;
}
