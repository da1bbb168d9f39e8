/* Random input, the same every run: nothing may crash, hang, or differ. */
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "guest.h"
#include "harness.h"

#define RAM (64u << 10)

static uint64_t random_entry(uint64_t *state) {
  uint64_t value = random_next(state);
  switch (random_next(state) % 4) {
  case 0:
    return value; /* anything */
  case 1:
    return 0;
  default: /* mostly tables within RAM, some of them large pages */
    return (value & (RAM - 1) & ~UINT64_C(0xfff)) | (value >> 32 & 0x87) |
           PRESENT;
  }
}

static void check_agreement(struct guest *guest, uint64_t gva) {
  struct kvmgdb_translation translation;
  struct kvmgdb_error error = {0}, read_error = {0};
  enum kvmgdb_status status = kvmgdb_translate(guest->memory, &guest->paging,
                                               gva, &translation, &error);
  CHECK(status == KVMGDB_OK || status == KVMGDB_ERR_NOT_MAPPED ||
        status == KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(error.status, status);
  uint8_t byte;
  enum kvmgdb_status read_status = kvmgdb_virtual_read(
      guest->memory, &guest->paging, gva, &byte, 1, NULL, &read_error);
  if (status != KVMGDB_OK) {
    CHECK_EQUAL(read_status, status);
    CHECK_EQUAL(read_error.address, gva);
    CHECK_EQUAL(read_error.level, error.level);
    CHECK_EQUAL(read_error.entry, error.entry);
  } else if (translation.gpa < RAM) {
    CHECK_EQUAL(read_status, KVMGDB_OK);
    CHECK_EQUAL(byte, guest->ram[translation.gpa]);
  } else {
    CHECK_EQUAL(read_status, KVMGDB_ERR_NO_RAM);
    CHECK_EQUAL(read_error.entry, translation.gpa);
  }
}

/* A long read is what as many reads of one byte are. */
static void check_long_read(struct guest *guest, uint64_t gva, size_t length) {
  static uint8_t whole[3 << 12];
  size_t done;
  struct kvmgdb_error error;
  enum kvmgdb_status status = kvmgdb_virtual_read(
      guest->memory, &guest->paging, gva, whole, length, &done, &error);
  if (status == KVMGDB_ERR_INVALID) {
    CHECK(gva + length < gva && gva + length != 0);
    return;
  }
  CHECK(done <= length && (status == KVMGDB_OK) == (done == length));
  for (size_t i = 0; i <= done && i < length; i += i + 100 < done ? 100 : 1) {
    uint8_t byte;
    enum kvmgdb_status one = kvmgdb_virtual_read(guest->memory, &guest->paging,
                                                 gva + i, &byte, 1, NULL, NULL);
    CHECK_EQUAL(one, i < done ? KVMGDB_OK : status);
    if (i < done)
      CHECK_EQUAL(byte, whole[i]);
  }
  if (status != KVMGDB_OK)
    CHECK_EQUAL(error.address, gva + done);
}

TEST(random, page_tables_full_of_anything) {
  uint64_t state = 20240607;
  enum kvmgdb_paging_mode modes[] = {KVMGDB_PAGING_NONE, KVMGDB_PAGING_32BIT,
                                     KVMGDB_PAGING_PAE, KVMGDB_PAGING_4LEVEL,
                                     KVMGDB_PAGING_5LEVEL};
  for (int round = 0; round < 60; round++) {
    GUEST guest = guest_create(modes[round % 5], RAM, 0);
    for (size_t i = 0; i < RAM; i += 8) {
      uint64_t entry = random_entry(&state);
      memcpy(guest.ram + i, &entry, 8);
    }
    if (round % 7 == 0)
      guest.paging.cr3 = random_next(&state);
    for (int i = 0; i < 300; i++) {
      uint64_t gva = random_next(&state);
      if (i % 4) /* mostly canonical, and near others */
        gva = (uint64_t)((int64_t)gva >> (i % 2 ? 17 : 34));
      if (i % 3 == 0)
        gva &= UINT32_MAX;
      check_agreement(&guest, gva);
      check_long_read(&guest, gva, random_next(&state) % (3 << 12));
      uint64_t from, gpa, size, next, match;
      int done, found;
      CHECK_EQUAL(kvmgdb_next_extent(guest.memory, &guest.paging, gva, 0, 50,
                                     &from, &gpa, &size, &next, &done, NULL),
                  KVMGDB_OK);
      CHECK(done || next > gva);
      if (size)
        check_agreement(&guest, from + size - 1);
      if (i % 10 == 0)
        CHECK_EQUAL(kvmgdb_virtual_search(guest.memory, &guest.paging, gva, 0,
                                          "\x01\x02\x03", 3, 20000, &found,
                                          &match, &next, &done, NULL),
                    KVMGDB_OK);
    }
  }
}

TEST(random, payloads_full_of_anything) {
  uint64_t state = 424242;
  static const char alphabet[] = "}}**##$$ !~ab";
  for (int round = 0; round < 30000; round++) {
    size_t length = random_next(&state) % 80;
    size_t capacity = random_next(&state) % 400;
    int runs = (int)(round & 1);
    uint8_t *payload = malloc(length + 1), *out = malloc(capacity + 1);
    uint8_t *other = malloc(capacity + 1);
    for (size_t i = 0; i < length; i++) {
      uint64_t value = random_next(&state);
      payload[i] = value % 3 ? (uint8_t)alphabet[value / 3 % 13]
                             : (uint8_t)(value >> 40);
    }
    size_t size, other_size;
    struct kvmgdb_error error = {0}, other_error = {0};
    enum kvmgdb_status status =
        codecs[0].unescape(payload, length, runs, out, capacity, &size, &error);
    CHECK(status == KVMGDB_OK || status == KVMGDB_ERR_INVALID);
    CHECK(size <= capacity);
    CHECK_EQUAL(codecs[1].unescape(payload, length, runs, other, capacity,
                                   &other_size, &other_error),
                status);
    CHECK_EQUAL(other_size, size);
    CHECK_EQUAL(other_error.address, error.address);
    CHECK(memcmp(out, other, size) == 0);
    free(payload);
    free(out);
    free(other);
  }
}

/* Data with runs of all lengths, some of bytes that need an escape. */
static void fill_with_runs(uint64_t *state, uint8_t *data, size_t length) {
  uint64_t spread = random_next(state) % 3 ? 256 : 8;
  for (size_t i = 0; i < length;) {
    uint8_t byte = (uint8_t)('#' + random_next(state) % spread);
    size_t run = random_next(state) % 4 ? 1 : random_next(state) % 300;
    while (run-- && i < length)
      data[i++] = byte;
  }
}

TEST(random, frames_of_memory_come_back_as_they_were) {
  uint64_t state = 77;
  for (int round = 0; round < 5000; round++) {
    size_t length = random_next(&state) % (round % 50 ? 300 : 7000);
    int runs = random_next(&state) % 2;
    /* Exactly as large as promised: the sanitizer watches the ends. */
    size_t largest = 1 + 2 * length + 4;
    uint8_t *data = malloc(length + 1), *back = malloc(2 * length + 1);
    uint8_t *out = malloc(largest), *other = malloc(largest);
    fill_with_runs(&state, data, length);
    size_t size = codecs[0].frame_binary("m", 1, data, length, runs, out);
    CHECK_EQUAL(codecs[1].frame_binary("m", 1, data, length, runs, other),
                size);
    CHECK(memcmp(out, other, size) == 0);
    size_t got;
    CHECK_EQUAL(
        codecs[0].unescape(out + 2, size - 5, 1, back, length, &got, NULL),
        KVMGDB_OK);
    CHECK(got == length && memcmp(back, data, length) == 0);
    size = codecs[0].frame_hex("", 0, data, length, runs, out);
    CHECK_EQUAL(codecs[1].frame_hex("", 0, data, length, runs, other), size);
    CHECK(memcmp(out, other, size) == 0);
    CHECK(runs || size == 2 * length + 4);
    CHECK_EQUAL(
        codecs[0].unescape(out + 1, size - 4, 1, back, 2 * length, &got, NULL),
        KVMGDB_OK);
    CHECK_EQUAL(got, 2 * length);
    for (size_t i = 0; i < length; i++) {
      char text[3];
      snprintf(text, sizeof(text), "%02x", data[i]);
      CHECK(memcmp(back + 2 * i, text, 2) == 0);
    }
    free(data);
    free(back);
    free(out);
    free(other);
  }
}
