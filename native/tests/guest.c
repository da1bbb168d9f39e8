#include "guest.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"

static struct kvmgdb_paging registers(enum kvmgdb_paging_mode mode) {
  switch (mode) {
  case KVMGDB_PAGING_NONE:
    return (struct kvmgdb_paging){.cr0 = 0x10};
  case KVMGDB_PAGING_32BIT:
    return (struct kvmgdb_paging){.cr0 = CR0_PAGING, .cr4 = CR4_BIG_PAGES};
  case KVMGDB_PAGING_PAE:
    return (struct kvmgdb_paging){
        .cr0 = CR0_PAGING, .cr4 = CR4_PAE_TABLES, .efer = EFER_NO_EXECUTE};
  case KVMGDB_PAGING_4LEVEL:
  case KVMGDB_PAGING_5LEVEL:
    break;
  }
  uint64_t five = mode == KVMGDB_PAGING_5LEVEL ? CR4_FIVE_LEVELS : 0;
  return (struct kvmgdb_paging){.cr0 = CR0_PAGING,
                                .cr4 = CR4_PAE_TABLES | five,
                                .efer = EFER_ENABLED | EFER_ACTIVE |
                                        EFER_NO_EXECUTE};
}

struct guest guest_create(enum kvmgdb_paging_mode mode, size_t size,
                          uint64_t tables) {
  struct guest guest = {.size = size, .paging = registers(mode)};
  guest.fd = memfd_create("guest", MFD_CLOEXEC);
  CHECK(guest.fd >= 0);
  CHECK(ftruncate(guest.fd, (off_t)size) == 0);
  guest.ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, guest.fd, 0);
  CHECK(guest.ram != MAP_FAILED);
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_memory_create(0, &guest.memory, &error), KVMGDB_OK);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(guest.memory, 0, size, guest.fd, 0, 0, &error),
      KVMGDB_OK);
  /* What stands beside the address in CR3 (PCID, PWT, PCD) is no part of it. */
  guest.paging.cr3 = tables | 0x18;
  guest.next_table = tables + 0x1000;
  return guest;
}

void guest_destroy(struct guest *guest) {
  kvmgdb_memory_destroy(guest->memory);
  munmap(guest->ram, guest->size);
  close(guest->fd);
}

static int is_32bit(const struct guest *guest) {
  return kvmgdb_paging_mode(&guest->paging) == KVMGDB_PAGING_32BIT;
}

static uint64_t get(struct guest *guest, uint64_t gpa) {
  uint64_t entry = 0;
  memcpy(&entry, guest->ram + gpa, is_32bit(guest) ? 4 : 8);
  return entry;
}

void guest_set(struct guest *guest, uint64_t entry_gpa, uint64_t entry) {
  memcpy(guest->ram + entry_gpa, &entry, is_32bit(guest) ? 4 : 8);
}

uint64_t guest_entry(struct guest *guest, uint64_t gva, int level) {
  unsigned bits = is_32bit(guest) ? 10 : 9;
  uint64_t table = guest->paging.cr3 & UINT64_C(0xffffffffffffffe0) & ~0x18ull;
  if (kvmgdb_paging_mode(&guest->paging) != KVMGDB_PAGING_PAE)
    table &= UINT64_C(0xffffffffff000);
  for (int at = (int)kvmgdb_paging_mode(&guest->paging);; at--) {
    uint64_t index = gva >> (12 + bits * (unsigned)(at - 1));
    uint64_t place =
        table + (index & ((1u << bits) - 1)) * (is_32bit(guest) ? 4 : 8);
    if (at == level)
      return place;
    if (!(get(guest, place) & PRESENT)) {
      CHECK(guest->next_table + 0x1000 <= guest->size);
      guest_set(guest, place, guest->next_table | PRESENT | WRITABLE | USER);
      guest->next_table += 0x1000;
    }
    table = get(guest, place) & UINT64_C(0xffffffffff000);
  }
}

void guest_map(struct guest *guest, uint64_t gva, uint64_t gpa, int level,
               uint64_t flags) {
  guest_set(guest, guest_entry(guest, gva, level), gpa | flags | PRESENT);
}

void fill_pattern(void *buffer, size_t length, uint32_t seed) {
  uint64_t state = seed * UINT64_C(2654435769) + 1;
  for (size_t i = 0; i < length; i++)
    ((uint8_t *)buffer)[i] = (uint8_t)(random_next(&state) >> 32);
}

uint64_t random_next(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}
