/* A guest's memory in a memfd, and page tables written into it. */
#ifndef KVMGDB_TESTS_GUEST_H
#define KVMGDB_TESTS_GUEST_H

#include <stddef.h>
#include <stdint.h>

#include <kvmgdb/kvmgdb.h>

#define PRESENT UINT64_C(1)
#define WRITABLE UINT64_C(2)
#define USER UINT64_C(4)
#define BIG UINT64_C(0x80)
#define NO_EXECUTE (UINT64_C(1) << 63)
/* Accessed, dirty, global, software and protection-key bits, bits 58:52. */
#define CLUTTER UINT64_C(0x07f0000000000e60)

#define CR0_PAGING (UINT64_C(1) << 31)
#define CR4_BIG_PAGES (UINT64_C(1) << 4)
#define CR4_PAE_TABLES (UINT64_C(1) << 5)
#define CR4_FIVE_LEVELS (UINT64_C(1) << 12)
#define EFER_ENABLED (UINT64_C(1) << 8)
#define EFER_ACTIVE (UINT64_C(1) << 10)
#define EFER_NO_EXECUTE (UINT64_C(1) << 11)

struct guest {
  int fd;
  uint8_t *ram; /* [0, size) of guest-physical memory */
  size_t size;
  struct kvmgdb_memory *memory;
  struct kvmgdb_paging paging;
  uint64_t next_table; /* guest-physical, grows */
};

/* RAM at [0, size), paging of `mode`; tables grow from `tables` upwards. */
struct guest guest_create(enum kvmgdb_paging_mode mode, size_t size,
                          uint64_t tables);
void guest_destroy(struct guest *guest);
#define GUEST __attribute__((cleanup(guest_destroy))) struct guest

/* Where the entry of `level` for `gva` lies; absent tables are put above it. */
uint64_t guest_entry(struct guest *guest, uint64_t gva, int level);

/* Writes an entry: 4 bytes in 32-bit mode, else 8. */
void guest_set(struct guest *guest, uint64_t entry_gpa, uint64_t entry);

/* Maps one page whose entry has `level`; `flags` go beside PRESENT. */
void guest_map(struct guest *guest, uint64_t gva, uint64_t gpa, int level,
               uint64_t flags);

/* Bytes that differ at every place. */
void fill_pattern(void *buffer, size_t length, uint32_t seed);

/* A small generator of random numbers (xorshift64*), the same every run. */
uint64_t random_next(uint64_t *state);

#endif
