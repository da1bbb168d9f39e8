#include "harness.h"
#include "images.h"

#include <string.h>

TEST(memory, sizes_out_of_bounds_are_refused) {
  struct guest_ram ram;
  struct vmm_error error;
  CHECK(!guest_ram_create(0, &ram, &error));
  CHECK(!guest_ram_create((64 << 20) - 1, &ram, &error));
  CHECK(strstr(error.text, "at least 64M"));
  CHECK(!guest_ram_create((64 << 20) + 4096, &ram, &error));
  CHECK(strstr(error.text, "whole MiB"));
  CHECK(!guest_ram_create(UINT64_MAX, &ram, &error));
  CHECK(strstr(error.text, "at most 512G"));
}

TEST(memory, the_hole_below_4_gib_is_no_ram) {
  RAM ram = ram_create(5 << 10);
  CHECK(guest_ram_at(&ram, 0, RAM_LOW_LIMIT) == ram.hva);
  CHECK(!guest_ram_at(&ram, 0, RAM_LOW_LIMIT + 1));
  CHECK(!guest_ram_at(&ram, RAM_LOW_LIMIT, 1));
  CHECK(!guest_ram_at(&ram, RAM_HIGH_BASE - 1, 2));
  CHECK(guest_ram_at(&ram, RAM_HIGH_BASE, 2ULL << 30) ==
        ram.hva + RAM_LOW_LIMIT);
  CHECK(!guest_ram_at(&ram, RAM_HIGH_BASE, (2ULL << 30) + 1));
  CHECK(!guest_ram_at(&ram, UINT64_MAX, 2));
  CHECK(!guest_ram_at(&ram, 16, UINT64_MAX));
}

TEST(memory, a_small_machine_has_nothing_above_4_gib) {
  RAM ram = ram_create(64);
  CHECK(!guest_ram_at(&ram, RAM_HIGH_BASE, 1));
  struct memory_map_entry map[MEMORY_MAP_MAX];
  CHECK_EQUAL(guest_ram_map(&ram, map), 4);
}

TEST(memory, the_map_covers_all_ram_in_order) {
  RAM ram = ram_create(5 << 10);
  struct memory_map_entry map[MEMORY_MAP_MAX];
  size_t count = guest_ram_map(&ram, map);
  for (size_t i = 0; i < count; i++) {
    CHECK(guest_ram_at(&ram, map[i].start, map[i].size));
    CHECK(i == 0 || map[i].start >= map[i - 1].start + map[i - 1].size);
  }
  CHECK_EQUAL(map[count - 1].start + map[count - 1].size, 6ULL << 30);
}

TEST(memory, clearing_makes_all_zero) {
  RAM ram = ram_create(64);
  struct vmm_error error;
  CHECK(guest_ram_write(&ram, 0x12345, "abc", 3, "text", &error));
  CHECK(guest_ram_clear(&ram, &error));
  CHECK(memcmp(guest_ram_at(&ram, 0x12345, 3), "\0\0\0", 3) == 0);
}
