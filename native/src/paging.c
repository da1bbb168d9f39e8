/*
 * The formats are those of the SDM, volume 3, chapter 4: figures 4-4 (32-bit),
 * 4-7 (PAE) and 4-11 (4-level and 5-level paging).
 */
#include "paging.h"

#include <stdbool.h>
#include <string.h>

#include "error.h"
#include "memory.h"

#define CR0_PG (UINT64_C(1) << 31)
#define CR4_PSE (UINT64_C(1) << 4)
#define CR4_PAE (UINT64_C(1) << 5)
#define CR4_LA57 (UINT64_C(1) << 12)
#define EFER_LME (UINT64_C(1) << 8)
#define EFER_LMA (UINT64_C(1) << 10)
#define EFER_NXE (UINT64_C(1) << 11)

#define ENTRY_PRESENT (UINT64_C(1) << 0)
#define ENTRY_WRITABLE (UINT64_C(1) << 1)
#define ENTRY_USER (UINT64_C(1) << 2)
#define ENTRY_PAGE_SIZE (UINT64_C(1) << 7)
#define ENTRY_NO_EXECUTE (UINT64_C(1) << 63)

/* Bits 51:12. Above lie software bits, protection keys and NX. */
#define ADDRESS_MASK UINT64_C(0x000ffffffffff000)

enum kvmgdb_paging_mode kvmgdb_paging_mode(const struct kvmgdb_paging *paging) {
  if (!paging || !(paging->cr0 & CR0_PG))
    return KVMGDB_PAGING_NONE;
  /* Paging with LME set sets LMA; some stubs report only LME. */
  if (paging->efer & (EFER_LMA | EFER_LME))
    return paging->cr4 & CR4_LA57 ? KVMGDB_PAGING_5LEVEL : KVMGDB_PAGING_4LEVEL;
  return paging->cr4 & CR4_PAE ? KVMGDB_PAGING_PAE : KVMGDB_PAGING_32BIT;
}

void walk_begin(struct walk *walk, struct kvmgdb_memory *memory,
                const struct kvmgdb_paging *paging) {
  walk->memory = memory;
  walk->paging = paging;
  walk->mode = kvmgdb_paging_mode(paging);
  for (int i = 0; i < PAGE_LEVELS; i++)
    walk->level[i].length = 0;
}

static unsigned index_bits(const struct walk *walk) {
  return walk->mode == KVMGDB_PAGING_32BIT ? 10 : 9;
}

/* The lowest bit of an address that selects an entry of `level`. */
static unsigned level_shift(const struct walk *walk, int level) {
  return 12 + index_bits(walk) * (unsigned)(level - 1);
}

/* How many bits an address may use; above, it repeats the highest of them. */
static unsigned canonical_bits(const struct walk *walk) {
  return walk->mode == KVMGDB_PAGING_5LEVEL ? 57 : 48;
}

static bool is_long(const struct walk *walk) {
  return walk->mode >= KVMGDB_PAGING_4LEVEL;
}

static bool is_canonical(const struct walk *walk, uint64_t gva) {
  if (!is_long(walk))
    return gva <= UINT32_MAX;
  uint64_t upper = gva >> (canonical_bits(walk) - 1);
  return upper == 0 || upper == UINT64_MAX >> (canonical_bits(walk) - 1);
}

uint64_t walk_skip(const struct walk *walk, uint64_t gva, int level) {
  if (level)
    return (gva | ((UINT64_C(1) << level_shift(walk, level)) - 1)) + 1;
  if (!is_long(walk) || gva >> 63)
    return 0;
  return UINT64_MAX << (canonical_bits(walk) - 1);
}

static uint64_t root_table(const struct walk *walk) {
  switch (walk->mode) {
  case KVMGDB_PAGING_32BIT:
    return walk->paging->cr3 & UINT64_C(0xfffff000);
  case KVMGDB_PAGING_PAE:
    return walk->paging->cr3 & UINT64_C(0xffffffe0);
  default: /* PCID, LAM and reserved bits lie around the address */
    return walk->paging->cr3 & ADDRESS_MASK;
  }
}

/* Bytes of a table: the four PDPTEs of PAE are no page of their own. */
static size_t table_size(const struct walk *walk, int level) {
  return walk->mode == KVMGDB_PAGING_PAE && level == 3 ? 32 : TABLE_SIZE;
}

static uint64_t run_entry(const struct walk *walk, const struct table_run *run,
                          size_t offset) {
  if (walk->mode == KVMGDB_PAGING_32BIT)
    return run->entry32[(offset - run->offset) / 4];
  return run->entry64[(offset - run->offset) / 8];
}

/* The entry at `offset` of a table; with it, those for `ahead` bytes more. */
static enum kvmgdb_status read_entry(struct walk *walk, int level,
                                     uint64_t table, size_t offset,
                                     uint64_t gva, uint64_t ahead,
                                     uint64_t *entry,
                                     struct kvmgdb_error *error) {
  struct table_run *run = &walk->level[level - 1];
  size_t entry_size = walk->mode == KVMGDB_PAGING_32BIT ? 4 : 8;
  bool known = run->length && run->gpa == table && offset >= run->offset &&
               offset - run->offset < run->length;
  if (!known) {
    unsigned shift = level_shift(walk, level);
    uint64_t last = ahead > UINT64_MAX - gva ? UINT64_MAX : gva + ahead;
    uint64_t entries = (last >> shift) - (gva >> shift) + 1;
    size_t wanted = table_size(walk, level) - offset;
    if (entries < wanted / entry_size)
      wanted = entries * entry_size;
    run->length = 0;
    size_t done;
    enum kvmgdb_status status = kvmgdb_memory_read(
        walk->memory, table + offset, run->entry64, wanted, &done, error);
    if (done < entry_size) {
      if (error) {
        error->address = gva;
        error->level = level;
        error->entry = table + offset;
      }
      return status;
    }
    run->gpa = table;
    run->offset = offset;
    run->length = done - done % entry_size;
  }
  *entry = run_entry(walk, run, offset);
  return KVMGDB_OK;
}

static bool is_leaf(const struct walk *walk, int level, uint64_t entry) {
  if (level == 1)
    return true;
  if (!(entry & ENTRY_PAGE_SIZE))
    return false;
  if (walk->mode == KVMGDB_PAGING_32BIT)
    return walk->paging->cr4 & CR4_PSE;
  return level == 2 || (level == 3 && is_long(walk));
}

static uint64_t page_address(const struct walk *walk, int level,
                             uint64_t entry) {
  /* PSE-36: bits 20:13 of a 4 MiB entry are bits 39:32 of the address. */
  if (walk->mode == KVMGDB_PAGING_32BIT && level == 2)
    return (entry & UINT64_C(0xffc00000)) | (entry >> 13 & 0xff) << 32;
  return entry & ADDRESS_MASK &
         ~((UINT64_C(1) << level_shift(walk, level)) - 1);
}

static void add_permissions(const struct walk *walk, int level, uint64_t entry,
                            struct kvmgdb_translation *translation) {
  /* A PDPTE of PAE has no permission bits. */
  if (walk->mode == KVMGDB_PAGING_PAE && level == 3)
    return;
  translation->writable &= (entry & ENTRY_WRITABLE) != 0;
  translation->user &= (entry & ENTRY_USER) != 0;
  if (walk->paging->efer & EFER_NXE)
    translation->executable &= (entry & ENTRY_NO_EXECUTE) == 0;
}

static enum kvmgdb_status not_mapped(struct kvmgdb_error *error, uint64_t gva,
                                     int level, uint64_t entry) {
  error_set(error, KVMGDB_ERR_NOT_MAPPED, 0, gva);
  error_set_entry(error, level, entry);
  return KVMGDB_ERR_NOT_MAPPED;
}

enum kvmgdb_status walk_translate(struct walk *walk, uint64_t gva,
                                  uint64_t ahead,
                                  struct kvmgdb_translation *translation,
                                  struct kvmgdb_error *error) {
  *translation = (struct kvmgdb_translation){.gpa = gva,
                                             .page_size = HOST_PAGE_SIZE,
                                             .mode = (int)walk->mode,
                                             .writable = 1,
                                             .user = 1,
                                             .executable = 1};
  if (!is_canonical(walk, gva))
    return not_mapped(error, gva, 0, 0);
  if (walk->mode == KVMGDB_PAGING_NONE)
    return KVMGDB_OK;
  size_t entry_size = walk->mode == KVMGDB_PAGING_32BIT ? 4 : 8;
  size_t index_mask = ((size_t)1 << index_bits(walk)) - 1;
  uint64_t table = root_table(walk);
  for (int level = (int)walk->mode;; level--) {
    unsigned shift = level_shift(walk, level);
    size_t offset = (gva >> shift & index_mask) * entry_size;
    uint64_t entry = 0;
    enum kvmgdb_status status =
        read_entry(walk, level, table, offset, gva, ahead, &entry, error);
    if (status != KVMGDB_OK)
      return status;
    translation->entry_gpa[translation->levels] = table + offset;
    translation->entry[translation->levels++] = entry;
    if (!(entry & ENTRY_PRESENT))
      return not_mapped(error, gva, level, entry);
    add_permissions(walk, level, entry, translation);
    if (is_leaf(walk, level, entry)) {
      translation->page_size = UINT64_C(1) << shift;
      translation->gpa = page_address(walk, level, entry) |
                         (gva & (translation->page_size - 1));
      return KVMGDB_OK;
    }
    table = entry & ADDRESS_MASK;
  }
}

enum kvmgdb_status kvmgdb_translate(struct kvmgdb_memory *memory,
                                    const struct kvmgdb_paging *paging,
                                    uint64_t gva,
                                    struct kvmgdb_translation *translation,
                                    struct kvmgdb_error *error) {
  if (!memory || !paging || !translation)
    return error_set(error, KVMGDB_ERR_INVALID, 0, gva);
  struct walk walk;
  walk_begin(&walk, memory, paging);
  return walk_translate(&walk, gva, 0, translation, error);
}
