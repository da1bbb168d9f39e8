#include <string.h>

#include "guest.h"
#include "harness.h"

#define RAM (8u << 20)
#define TABLES 0x400000
#define BASE UINT64_C(0xffff888000000000)

static struct guest long_guest(void) {
  struct guest guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  fill_pattern(guest.ram, TABLES, 1);
  return guest;
}

/* Reads and compares with what guest-physical `gpa` holds. */
static void check_read(struct guest *guest, uint64_t gva, uint64_t gpa,
                       size_t length) {
  static uint8_t buffer[RAM];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest->memory, &guest->paging, gva, buffer,
                                  length, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(done, length);
  CHECK(memcmp(buffer, guest->ram + gpa, length) == 0);
}

TEST(virtual, a_range_over_scattered_pages_is_read_in_order) {
  GUEST guest = long_guest();
  /* 1000 pages, each the one before the last: nothing can be merged. */
  for (uint64_t page = 0; page < 1000; page++)
    guest_map(&guest, BASE + (page << 12), (999 - page) << 12, 1, 0);
  static uint8_t buffer[1000 << 12];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging, BASE + 5, buffer,
                                  sizeof(buffer) - 10, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(done, sizeof(buffer) - 10);
  for (size_t i = 0; i < done; i++) {
    size_t page = (i + 5) >> 12;
    CHECK_EQUAL(buffer[i], guest.ram[((999 - page) << 12) + ((i + 5) & 0xfff)]);
  }
}

TEST(virtual, what_lies_before_an_unmapped_page_is_read) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x5000, 1, 0);
  guest_map(&guest, BASE + 0x1000, 0x3000, 1, 0);
  guest_map(&guest, BASE + 0x3000, 0x4000, 1, 0);
  uint8_t buffer[0x4000];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging, BASE + 0x800,
                                  buffer, 0x3000, &done, &error),
              KVMGDB_ERR_NOT_MAPPED);
  CHECK_EQUAL(done, 0x1800);
  CHECK_EQUAL(error.address, BASE + 0x2000);
  CHECK_EQUAL(error.level, 1);
  CHECK(memcmp(buffer, guest.ram + 0x5800, 0x800) == 0);
  CHECK(memcmp(buffer + 0x800, guest.ram + 0x3000, 0x1000) == 0);
}

TEST(virtual, what_is_mapped_but_no_ram_has_a_virtual_address) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x5000, 1, 0);
  guest_map(&guest, BASE + 0x1000, 0xfee00000, 1, 0);
  uint8_t buffer[0x2000];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging, BASE + 0x10,
                                  buffer, 0x1800, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0xff0);
  CHECK_EQUAL(error.address, BASE + 0x1000);
  CHECK_EQUAL(error.level, 0);
  CHECK_EQUAL(error.entry, 0xfee00000);
}

TEST(virtual, a_range_may_end_at_the_end_of_the_address_space) {
  GUEST guest = long_guest();
  guest_map(&guest, UINT64_C(0xfffffffffffff000), 0x6000, 1, 0);
  check_read(&guest, UINT64_C(0xffffffffffffff00), 0x6f00, 0x100);
  uint8_t buffer[0x200];
  struct kvmgdb_error error;
  size_t done = 1;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging,
                                  UINT64_C(0xffffffffffffff00), buffer, 0x101,
                                  &done, &error),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(done, 0);
}

TEST(virtual, a_range_does_not_run_through_the_canonical_hole) {
  GUEST guest = long_guest();
  guest_map(&guest, UINT64_C(0x00007ffffffff000), 0x6000, 1, 0);
  guest_map(&guest, UINT64_C(0xffff800000000000), 0x7000, 1, 0);
  uint8_t buffer[0x2000];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging,
                                  UINT64_C(0x00007ffffffff000), buffer, 0x2000,
                                  &done, &error),
              KVMGDB_ERR_NOT_MAPPED);
  CHECK_EQUAL(done, 0x1000);
  CHECK_EQUAL(error.address, UINT64_C(0x0000800000000000));
  CHECK_EQUAL(error.level, 0);
}

TEST(virtual, large_pages_are_read_across_their_ends) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x200000, 2, BIG);
  guest_map(&guest, BASE + 0x200000, 0, 2, BIG);
  check_read(&guest, BASE + 0x100000, 0x300000, 0x100000);
  check_read(&guest, BASE + 0x200000, 0, 0x200000);
  uint8_t buffer[32];
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest.memory, &guest.paging,
                                  BASE + 0x200000 - 16, buffer, 32, &done,
                                  NULL),
              KVMGDB_OK);
  CHECK(memcmp(buffer, guest.ram + 0x400000 - 16, 16) == 0);
  CHECK(memcmp(buffer + 16, guest.ram, 16) == 0);
}

TEST(virtual, writing_passes_over_write_protection) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x5000, 1, 0);
  guest_map(&guest, BASE + 0x1000, 0x3000, 1, 0);
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_write(guest.memory, &guest.paging, BASE + 0xffe,
                                   "\xcc\xcd\xce\xcf", 4, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(done, 4);
  CHECK(memcmp(guest.ram + 0x5ffe, "\xcc\xcd", 2) == 0);
  CHECK(memcmp(guest.ram + 0x3000, "\xce\xcf", 2) == 0);
}

/* All extents of [from, end), with `budget` entries a call. */
static size_t list_extents(struct guest *guest, uint64_t from, uint64_t end,
                           uint64_t budget, uint64_t extents[][3],
                           size_t capacity) {
  size_t count = 0;
  int done = 0;
  for (int calls = 0; !done; calls++) {
    CHECK(calls < 100000);
    uint64_t gva, gpa, size, next;
    struct kvmgdb_error error;
    CHECK_EQUAL(kvmgdb_next_extent(guest->memory, &guest->paging, from, end,
                                   budget, &gva, &gpa, &size, &next, &done,
                                   &error),
                KVMGDB_OK);
    CHECK(done || next > from);
    if (size && count && extents[count - 1][0] + extents[count - 1][2] == gva &&
        extents[count - 1][1] + extents[count - 1][2] == gpa) {
      extents[count - 1][2] += size; /* cut in two by the budget */
    } else if (size) {
      CHECK(count < capacity);
      extents[count][0] = gva;
      extents[count][1] = gpa;
      extents[count++][2] = size;
    }
    from = next;
  }
  return count;
}

static void map_extents(struct guest *guest) {
  for (uint64_t page = 0; page < 5; page++) /* one extent of five pages */
    guest_map(guest, 0x400000 + (page << 12), 0x10000 + (page << 12), 1, 0);
  guest_map(guest, 0x405000, 0x30000, 1, 0); /* adjacent GVA, another GPA */
  guest_map(guest, BASE + 0x200000, 0x200000, 2, BIG);
  guest_map(guest, BASE + 0x400000, 0x400000, 1, 0); /* goes on in 4 KiB */
  guest_map(guest, UINT64_C(0xfffffffffffff000), 0x6000, 1, 0);
}

static const uint64_t expected_extents[][3] = {
    {0x400000, 0x10000, 0x5000},
    {0x405000, 0x30000, 0x1000},
    {BASE + 0x200000, 0x200000, 0x201000},
    {UINT64_C(0xfffffffffffff000), 0x6000, 0x1000},
};

TEST(virtual, extents_are_merged_and_gaps_skipped) {
  GUEST guest = long_guest();
  map_extents(&guest);
  for (uint64_t budget = 0; budget < 10000; budget = budget * 3 + 1) {
    uint64_t extents[8][3];
    CHECK_EQUAL(list_extents(&guest, 0, 0, budget, extents, 8), 4);
    CHECK(memcmp(extents, expected_extents, sizeof(expected_extents)) == 0);
  }
}

TEST(virtual, extents_are_cut_at_the_range_asked_for) {
  GUEST guest = long_guest();
  map_extents(&guest);
  uint64_t extents[8][3];
  CHECK_EQUAL(list_extents(&guest, 0x401800, 0x404800, 1000, extents, 8), 1);
  CHECK_EQUAL(extents[0][0], 0x401800);
  CHECK_EQUAL(extents[0][1], 0x11800);
  CHECK_EQUAL(extents[0][2], 0x3000);
  CHECK_EQUAL(list_extents(&guest, 0x500000, 0x500000, 1000, extents, 8), 0);
  CHECK_EQUAL(list_extents(&guest, 0x500000, 0x400000, 1000, extents, 8), 0);
}

TEST(virtual, extents_without_paging_end_at_4_gib) {
  GUEST guest = guest_create(KVMGDB_PAGING_NONE, RAM, TABLES);
  uint64_t extents[2][3];
  CHECK_EQUAL(list_extents(&guest, 0x1000, 0, 1 << 20, extents, 2), 1);
  CHECK_EQUAL(extents[0][2], UINT64_C(0x100000000) - 0x1000);
}

TEST(virtual, hostile_tables_use_up_their_budget_and_no_more) {
  GUEST guest = long_guest();
  /* All 512 entries of the root are the root: 2^48 bytes in 4 KiB pages. */
  for (uint64_t i = 0; i < 512; i++)
    guest_set(&guest, TABLES + i * 8, TABLES | PRESENT);
  uint64_t from = 0, total = 0;
  for (int calls = 0; calls < 1000; calls++) {
    uint64_t gva, gpa, size, next;
    int done;
    CHECK_EQUAL(kvmgdb_next_extent(guest.memory, &guest.paging, from, 0, 100,
                                   &gva, &gpa, &size, &next, &done, NULL),
                KVMGDB_OK);
    CHECK(!done && size && next > from && next - from <= 100 * 0x1000);
    total += size;
    from = next;
  }
  CHECK_EQUAL(total, from);
  /* Tables outside RAM are passed over, a whole entry's reach at a time. */
  for (uint64_t i = 0; i < 512; i++)
    guest_set(&guest, TABLES + i * 8, UINT64_C(0xffffffffff000) | PRESENT);
  uint64_t extents[1][3];
  CHECK_EQUAL(list_extents(&guest, 0, UINT64_C(1) << 40, 1000, extents, 1), 0);
}

/* The address of the first match in slices of `budget` bytes, or 0. */
static uint64_t search(struct guest *guest, uint64_t from, uint64_t end,
                       const void *pattern, size_t length, uint64_t budget) {
  for (int calls = 0;; calls++) {
    CHECK(calls < 10000);
    int found, done;
    uint64_t match, next;
    struct kvmgdb_error error;
    CHECK_EQUAL(kvmgdb_virtual_search(guest->memory, &guest->paging, from, end,
                                      pattern, length, budget, &found, &match,
                                      &next, &done, &error),
                KVMGDB_OK);
    if (found || done)
      return found ? match : 0;
    CHECK(next > from);
    from = next;
  }
}

TEST(virtual, search_finds_across_pages_that_are_adjacent_for_the_guest) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x9000, 1, 0);
  guest_map(&guest, BASE + 0x1000, 0x3000, 1, 0);
  guest_map(&guest, BASE + 0x2000, 0x7000, 1, 0);
  memcpy(guest.ram + 0x9ffb, "needl", 5);
  memcpy(guest.ram + 0x3000, "e of the guest", 14);
  for (uint64_t budget = 0; budget <= 1 << 20; budget = budget * 4 + 1) {
    CHECK_EQUAL(search(&guest, BASE, 0, "needle of the guest", 19, budget),
                BASE + 0xffb);
    CHECK_EQUAL(
        search(&guest, 0, BASE + 0x100e, "needle of the guest", 19, budget),
        BASE + 0xffb);
    /* One byte too few, one byte too late. */
    CHECK_EQUAL(
        search(&guest, 0, BASE + 0x100d, "needle of the guest", 19, budget), 0);
    CHECK_EQUAL(
        search(&guest, BASE + 0xffc, 0, "needle of the guest", 19, budget), 0);
  }
}

TEST(virtual, search_does_not_find_across_a_gap) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0x9000, 1, 0);
  guest_map(&guest, BASE + 0x2000, 0x3000, 1, 0);
  guest_map(&guest, BASE + 0x3000, 0xfee00000, 1, 0); /* no RAM */
  guest_map(&guest, BASE + 0x4000, 0x5000, 1, 0);
  memcpy(guest.ram + 0x9ffb, "needl", 5);
  memcpy(guest.ram + 0x3000, "e of the guest", 14);
  CHECK_EQUAL(search(&guest, 0, 0, "needle of the guest", 19, 1 << 20), 0);
  memcpy(guest.ram + 0x3ffe, "ab", 2);
  memcpy(guest.ram + 0x5000, "cd", 2);
  CHECK_EQUAL(search(&guest, BASE, 0, "abcd", 4, 1 << 20), 0);
  CHECK_EQUAL(search(&guest, BASE, 0, "cd", 2, 1 << 20) & 0xfff,
              search(&guest, BASE, 0, "cd", 2, 1) & 0xfff);
}

TEST(virtual, search_over_chunks_finds_what_lies_across_them) {
  GUEST guest = long_guest();
  guest_map(&guest, BASE, 0, 2, BIG);
  guest_map(&guest, BASE + 0x200000, 0x200000, 2, BIG);
  static uint8_t pattern[65536];
  for (uint64_t at = 0x3f000; at < 0x300000; at += 0x2fff1) {
    memcpy(pattern, guest.ram + at, sizeof(pattern));
    CHECK_EQUAL(search(&guest, BASE, 0, pattern, sizeof(pattern), 1),
                BASE + at);
    CHECK_EQUAL(search(&guest, BASE, 0, pattern, 300, 70000), BASE + at);
  }
}

TEST(virtual, search_passes_over_what_is_mapped_without_ram_quickly) {
  GUEST guest = long_guest();
  /* 511 GiB of no RAM, then the page. */
  for (uint64_t gib = 1; gib < 512; gib++)
    guest_map(&guest, BASE + (gib << 30), (gib << 30) + (UINT64_C(1) << 40), 3,
              BIG);
  guest_map(&guest, BASE + (UINT64_C(512) << 30), 0x9000, 1, 0);
  memcpy(guest.ram + 0x9100, "the needle", 10);
  /* Once with nothing above what was looked at, once with RAM far above. */
  CHECK_EQUAL(search(&guest, BASE, 0, "the needle", 10, 1 << 20),
              BASE + (UINT64_C(512) << 30) + 0x100);
  CHECK_EQUAL(kvmgdb_memory_add_file(guest.memory, UINT64_C(1) << 45, 0x1000,
                                     guest.fd, 0, 0, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(search(&guest, BASE, 0, "the needle", 10, 1 << 20),
              BASE + (UINT64_C(512) << 30) + 0x100);
}

TEST(virtual, search_refuses_patterns_out_of_bounds) {
  GUEST guest = long_guest();
  int found, done;
  uint64_t match, next;
  static uint8_t pattern[65537];
  size_t lengths[] = {0, sizeof(pattern)};
  for (size_t i = 0; i < 2; i++)
    CHECK_EQUAL(kvmgdb_virtual_search(guest.memory, &guest.paging, 0, 0,
                                      pattern, lengths[i], 1000, &found, &match,
                                      &next, &done, NULL),
                KVMGDB_ERR_INVALID);
}
