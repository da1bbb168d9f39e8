#include <string.h>

#include "guest.h"
#include "harness.h"

#define RAM (4u << 20)
#define TABLES 0x10000

static struct kvmgdb_translation translate(struct guest *guest, uint64_t gva) {
  struct kvmgdb_translation result;
  struct kvmgdb_error error;
  CHECK_EQUAL(
      kvmgdb_translate(guest->memory, &guest->paging, gva, &result, &error),
      KVMGDB_OK);
  return result;
}

static struct kvmgdb_error refuse(struct guest *guest, uint64_t gva,
                                  enum kvmgdb_status status) {
  struct kvmgdb_translation result;
  struct kvmgdb_error error;
  CHECK_EQUAL(
      kvmgdb_translate(guest->memory, &guest->paging, gva, &result, &error),
      status);
  CHECK_EQUAL(error.status, status);
  CHECK_EQUAL(error.address, gva);
  return error;
}

TEST(paging, mode_follows_the_control_registers) {
  struct {
    struct kvmgdb_paging paging;
    enum kvmgdb_paging_mode mode;
  } cases[] = {
      {{.cr0 = 0x11, .cr4 = CR4_PAE_TABLES, .efer = EFER_ENABLED},
       KVMGDB_PAGING_NONE},
      {{.cr0 = CR0_PAGING}, KVMGDB_PAGING_32BIT},
      {{.cr0 = CR0_PAGING, .cr4 = CR4_PAE_TABLES}, KVMGDB_PAGING_PAE},
      {{.cr0 = CR0_PAGING, .cr4 = CR4_PAE_TABLES, .efer = EFER_ACTIVE},
       KVMGDB_PAGING_4LEVEL},
      {{.cr0 = CR0_PAGING, .cr4 = CR4_PAE_TABLES, .efer = EFER_ENABLED},
       KVMGDB_PAGING_4LEVEL},
      {{.cr0 = CR0_PAGING,
        .cr4 = CR4_PAE_TABLES | CR4_FIVE_LEVELS,
        .efer = EFER_ACTIVE},
       KVMGDB_PAGING_5LEVEL},
      /* LA57 cannot be set outside long mode; it means nothing there. */
      {{.cr0 = CR0_PAGING, .cr4 = CR4_PAE_TABLES | CR4_FIVE_LEVELS},
       KVMGDB_PAGING_PAE},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
    CHECK_EQUAL(kvmgdb_paging_mode(&cases[i].paging), cases[i].mode);
}

TEST(paging, without_paging_an_address_is_itself_below_4_gib) {
  GUEST guest = guest_create(KVMGDB_PAGING_NONE, RAM, TABLES);
  struct kvmgdb_translation result = translate(&guest, 0xfffffff0);
  CHECK_EQUAL(result.gpa, 0xfffffff0);
  CHECK_EQUAL(result.levels, 0);
  CHECK_EQUAL(
      refuse(&guest, UINT64_C(0x100000000), KVMGDB_ERR_NOT_MAPPED).level, 0);
}

/* One page of every size that a mode has. */
static void check_sizes(enum kvmgdb_paging_mode mode, uint64_t gva,
                        int largest) {
  for (int level = 1; level <= largest; level++) {
    GUEST guest = guest_create(mode, RAM, TABLES);
    unsigned shift =
        12 + (mode == KVMGDB_PAGING_32BIT ? 10u : 9u) * (unsigned)(level - 1);
    uint64_t size = UINT64_C(1) << shift;
    uint64_t clutter = mode == KVMGDB_PAGING_32BIT ? 0xe60 : CLUTTER;
    uint64_t gpa = 5 * size;
    guest_map(&guest, gva & ~(size - 1), gpa, level,
              clutter | (level > 1 ? BIG : 0));
    struct kvmgdb_translation result = translate(&guest, gva);
    CHECK_EQUAL(result.gpa, gpa + (gva & (size - 1)));
    CHECK_EQUAL(result.page_size, size);
    CHECK_EQUAL(result.mode, mode);
    CHECK_EQUAL(result.levels, (int)mode - level + 1);
    CHECK_EQUAL(result.entry_gpa[result.levels - 1],
                guest_entry(&guest, gva, level));
    CHECK_EQUAL(result.entry[result.levels - 1],
                gpa | clutter | PRESENT | (level > 1 ? BIG : 0));
    /* The page behind it is not mapped, and its entry's level is told. */
    struct kvmgdb_error error =
        refuse(&guest, (gva | (size - 1)) + 1, KVMGDB_ERR_NOT_MAPPED);
    CHECK_EQUAL(error.level, level);
    CHECK_EQUAL(error.entry, 0);
  }
}

TEST(paging, every_page_size_of_32bit_paging) {
  check_sizes(KVMGDB_PAGING_32BIT, 0xc0123456, 2);
}

TEST(paging, every_page_size_of_pae_paging) {
  check_sizes(KVMGDB_PAGING_PAE, 0xc0123456, 2);
}

TEST(paging, every_page_size_of_4_level_paging) {
  check_sizes(KVMGDB_PAGING_4LEVEL, UINT64_C(0xffffffff81234567), 3);
  check_sizes(KVMGDB_PAGING_4LEVEL, UINT64_C(0x00007fff12345678), 3);
}

TEST(paging, every_page_size_of_5_level_paging) {
  check_sizes(KVMGDB_PAGING_5LEVEL, UINT64_C(0xff11000012345678), 3);
  check_sizes(KVMGDB_PAGING_5LEVEL, UINT64_C(0x0012345678abcdef), 3);
}

TEST(paging, pse_36_reaches_above_4_gib) {
  GUEST guest = guest_create(KVMGDB_PAGING_32BIT, RAM, TABLES);
  guest_map(&guest, 0x00400000, 0x00c00000 | 0xabu << 13, 2, BIG);
  CHECK_EQUAL(translate(&guest, 0x00412345).gpa, UINT64_C(0xab00c12345));
}

TEST(paging, without_pse_the_size_bit_is_ignored) {
  GUEST guest = guest_create(KVMGDB_PAGING_32BIT, RAM, TABLES);
  guest_map(&guest, 0x00400000, 0x7000, 1, 0);
  uint64_t directory = guest_entry(&guest, 0x00400000, 2);
  guest.ram[directory] |= BIG;
  guest.paging.cr4 = 0;
  CHECK_EQUAL(translate(&guest, 0x00400123).gpa, 0x7123);
}

TEST(paging, the_pointer_table_of_pae_may_lie_within_a_page) {
  GUEST guest = guest_create(KVMGDB_PAGING_PAE, RAM, TABLES);
  guest.paging.cr3 = TABLES + 0x7e0;
  guest_map(&guest, 0xfffff000, 0x5000, 1, 0);
  struct kvmgdb_translation result = translate(&guest, 0xfffff123);
  CHECK_EQUAL(result.gpa, 0x5123);
  CHECK_EQUAL(result.entry_gpa[0], TABLES + 0x7e0 + 3 * 8);
}

TEST(paging, permissions_are_those_of_all_levels) {
  uint64_t gva = UINT64_C(0xffff888000000000);
  for (int restricted = 1; restricted <= 4; restricted++) {
    GUEST guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
    guest_map(&guest, gva, 0x5000, 1, WRITABLE | USER);
    struct kvmgdb_translation open = translate(&guest, gva);
    CHECK(open.writable && open.user && open.executable);
    uint64_t place = guest_entry(&guest, gva, restricted);
    uint64_t entry = open.entry[4 - restricted];
    guest_set(&guest, place, (entry & ~(WRITABLE | USER)) | NO_EXECUTE);
    struct kvmgdb_translation closed = translate(&guest, gva);
    CHECK(!closed.writable && !closed.user && !closed.executable);
    guest.paging.efer &= ~EFER_NO_EXECUTE;
    CHECK(translate(&guest, gva).executable);
  }
}

TEST(paging, a_pae_pointer_table_does_not_restrict) {
  GUEST guest = guest_create(KVMGDB_PAGING_PAE, RAM, TABLES);
  guest_map(&guest, 0x1000, 0x5000, 1, WRITABLE | USER);
  uint64_t place = guest_entry(&guest, 0x1000, 3);
  guest_set(&guest, place, (TABLES + 0x1000) | PRESENT);
  struct kvmgdb_translation result = translate(&guest, 0x1000);
  CHECK(result.writable && result.user && result.executable);
}

TEST(paging, the_absent_level_and_its_entry_are_told) {
  uint64_t gva = UINT64_C(0xff11000012345000);
  for (int absent = 1; absent <= 5; absent++) {
    GUEST guest = guest_create(KVMGDB_PAGING_5LEVEL, RAM, TABLES);
    uint64_t swapped_out = UINT64_C(0x123456789abcdef0) & ~PRESENT;
    guest_set(&guest, guest_entry(&guest, gva, absent), swapped_out);
    struct kvmgdb_error error = refuse(&guest, gva, KVMGDB_ERR_NOT_MAPPED);
    CHECK_EQUAL(error.level, absent);
    CHECK_EQUAL(error.entry, swapped_out);
  }
}

TEST(paging, addresses_that_are_not_canonical_are_not_mapped) {
  struct {
    enum kvmgdb_paging_mode mode;
    uint64_t gva;
  } cases[] = {
      {KVMGDB_PAGING_4LEVEL, UINT64_C(0x0000800000000000)},
      {KVMGDB_PAGING_4LEVEL, UINT64_C(0xffff7fffffffffff)},
      {KVMGDB_PAGING_4LEVEL, UINT64_C(0x8000000000000000)},
      {KVMGDB_PAGING_5LEVEL, UINT64_C(0x0100000000000000)},
      {KVMGDB_PAGING_5LEVEL, UINT64_C(0xfeffffffffffffff)},
      {KVMGDB_PAGING_PAE, UINT64_C(0x100000000)},
      {KVMGDB_PAGING_32BIT, UINT64_C(0xffffffffc0000000)},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    GUEST guest = guest_create(cases[i].mode, RAM, TABLES);
    guest_map(&guest, cases[i].gva, 0x5000, 1, 0);
    CHECK_EQUAL(refuse(&guest, cases[i].gva, KVMGDB_ERR_NOT_MAPPED).level, 0);
  }
}

TEST(paging, a_table_outside_ram_names_the_entry) {
  uint64_t gva = UINT64_C(0xffffffff81000000);
  GUEST guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  guest_set(&guest, guest_entry(&guest, gva, 3),
            UINT64_C(0x000ffffffffff000) | PRESENT);
  struct kvmgdb_error error = refuse(&guest, gva, KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(error.level, 2);
  CHECK_EQUAL(error.entry, UINT64_C(0x000ffffffffff000) + 8 * 8);
  guest.paging.cr3 = UINT64_MAX;
  error = refuse(&guest, gva, KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(error.level, 4);
  CHECK_EQUAL(error.entry, UINT64_C(0x000ffffffffff000) + 511 * 8);
}

TEST(paging, a_table_that_points_at_itself_is_a_mapping_like_any_other) {
  GUEST guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  /* Entry 510 of the root is the root: the tables appear as memory. */
  guest_set(&guest, TABLES + 510 * 8, TABLES | PRESENT | WRITABLE);
  uint64_t self = UINT64_C(0xffffff7fbfdfe000);
  struct kvmgdb_translation result = translate(&guest, self + 510 * 8);
  CHECK_EQUAL(result.gpa, TABLES + 510 * 8);
  CHECK_EQUAL(result.levels, 4);
}

TEST(paging, arguments_are_checked) {
  GUEST guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  struct kvmgdb_translation result;
  CHECK_EQUAL(kvmgdb_translate(NULL, &guest.paging, 0, &result, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_translate(guest.memory, NULL, 0, &result, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_translate(guest.memory, &guest.paging, 0, NULL, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_translate(guest.memory, &guest.paging, 0, &result, NULL),
              KVMGDB_ERR_NOT_MAPPED);
}
