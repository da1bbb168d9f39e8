/*
 * The ORC tables of the kernel and its modules: arch/x86/include/asm/
 * orc_types.h, Documentation/arch/x86/orc-unwinder.rst. An address that occurs
 * twice has the rule of its last entry.
 */
#include "orc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../cleanup.h"
#include "../error.h"
#include "../ranges.h"

#define MAX_ENTRIES (UINT32_C(1) << 24)
#define MAX_ENTRY_SIZE 16
#define MAX_TABLES 4096
/* Of code that one table describes. */
#define MAX_CODE (UINT64_C(1) << 30)

/* ORC_REG_*: until 7.0 (AX came last), and since. */
static const uint8_t registers_sp5[16] = {
    ORC_UNDEFINED,   ORC_PREV_SP,     ORC_DX,      ORC_DI,
    ORC_BP,          ORC_SP,          ORC_R10,     ORC_R13,
    ORC_BP_INDIRECT, ORC_SP_INDIRECT, ORC_AX,      ORC_UNKNOWN,
    ORC_UNKNOWN,     ORC_UNKNOWN,     ORC_UNKNOWN, ORC_UNKNOWN};
static const uint8_t registers_sp3[16] = {
    ORC_UNDEFINED, ORC_AX,          ORC_DX,          ORC_SP,
    ORC_BP,        ORC_DI,          ORC_R10,         ORC_R13,
    ORC_PREV_SP,   ORC_SP_INDIRECT, ORC_BP_INDIRECT, ORC_UNKNOWN,
    ORC_UNKNOWN,   ORC_UNKNOWN,     ORC_UNKNOWN,     ORC_UNKNOWN};

static uint32_t read_field(const uint8_t *entry,
                           const struct kvmgdb_orc_field *field) {
  uint32_t value = 0;
  for (uint32_t bit = 0; bit < field->bits;) {
    uint32_t at = field->bit_offset + bit;
    value |= (uint32_t)(entry[at / 8] >> at % 8) << bit;
    bit += 8 - at % 8;
  }
  return field->bits < 32 ? value & ((UINT32_C(1) << field->bits) - 1) : value;
}

static bool field_fits(const struct kvmgdb_orc_layout *layout,
                       const struct kvmgdb_orc_field *field, uint32_t most) {
  return field->bits <= most && field->bit_offset <= 8 * layout->entry_size &&
         field->bits <= 8 * layout->entry_size - field->bit_offset;
}

static bool layout_is_valid(const struct kvmgdb_orc_layout *layout) {
  return layout->entry_size > 0 && layout->entry_size <= MAX_ENTRY_SIZE &&
         field_fits(layout, &layout->sp_offset, 16) &&
         field_fits(layout, &layout->bp_offset, 16) &&
         field_fits(layout, &layout->sp_reg, 4) &&
         field_fits(layout, &layout->bp_reg, 4) &&
         field_fits(layout, &layout->type, 4) &&
         field_fits(layout, &layout->end, 1) &&
         field_fits(layout, &layout->signal, 1) &&
         (layout->types == KVMGDB_ORC_TYPES_CALL_FIRST ||
          layout->types == KVMGDB_ORC_TYPES_UNDEFINED_FIRST) &&
         layout->registers >= KVMGDB_ORC_REGISTERS_DETECT &&
         layout->registers <= KVMGDB_ORC_REGISTERS_SP3;
}

/* Nearly every rule is based on the stack pointer. */
static int detect_registers(const struct kvmgdb_orc_layout *layout,
                            const uint8_t *entries, size_t count) {
  size_t seen[16] = {0};
  for (size_t i = 0; i < count; i++)
    seen[read_field(entries + i * layout->entry_size, &layout->sp_reg) & 15]++;
  return seen[3] > seen[5] ? KVMGDB_ORC_REGISTERS_SP3
                           : KVMGDB_ORC_REGISTERS_SP5;
}

static int16_t read_offset(const uint8_t *entry,
                           const struct kvmgdb_orc_field *field) {
  uint32_t value = read_field(entry, field);
  if (field->bits && field->bits < 16 && value >> (field->bits - 1))
    value |= ~UINT32_C(0) << field->bits;
  return (int16_t)value;
}

static uint8_t type_of(const struct kvmgdb_orc_layout *layout,
                       const uint8_t *entry, uint8_t sp_register) {
  uint32_t type = read_field(entry, &layout->type);
  if (layout->types == KVMGDB_ORC_TYPES_UNDEFINED_FIRST)
    return type <= ORC_TYPE_PARTIAL_REGS ? (uint8_t)type : ORC_TYPE_UNDEFINED;
  if (sp_register == ORC_UNDEFINED)
    return read_field(entry, &layout->end) ? ORC_TYPE_END : ORC_TYPE_UNDEFINED;
  return type <= 2 ? (uint8_t)(ORC_TYPE_CALL + type) : ORC_TYPE_UNDEFINED;
}

static struct orc_rule decode_rule(const struct kvmgdb_orc_layout *layout,
                                   const uint8_t *registers,
                                   const uint8_t *entry) {
  uint8_t sp_register = registers[read_field(entry, &layout->sp_reg) & 15];
  uint8_t type = type_of(layout, entry, sp_register);
  return (struct orc_rule){
      .sp_offset = read_offset(entry, &layout->sp_offset),
      .bp_offset = read_offset(entry, &layout->bp_offset),
      .sp_register = sp_register,
      .bp_register = registers[read_field(entry, &layout->bp_reg) & 15],
      .type = type,
      .signal = layout->signal.bits
                    ? read_field(entry, &layout->signal) != 0
                    : type == ORC_TYPE_REGS || type == ORC_TYPE_PARTIAL_REGS};
}

/* ---- order --------------------------------------------------------------- */

struct placed_rule {
  uint32_t ip;
  uint32_t order;
  struct orc_rule rule;
};

static int compare_placed(const void *left, const void *right) {
  const struct placed_rule *a = left, *b = right;
  if (a->ip != b->ip)
    return a->ip < b->ip ? -1 : 1;
  return a->order < b->order ? -1 : a->order > b->order;
}

static enum kvmgdb_status sort_rules(struct orc_table *table,
                                     struct kvmgdb_error *error) {
  size_t i = 1;
  while (i < table->count && table->ips[i - 1] <= table->ips[i])
    i++;
  if (i >= table->count)
    return KVMGDB_OK;
  SCOPED_FREE struct placed_rule *placed =
      malloc(table->count * sizeof(*placed));
  if (!placed)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, table->start);
  for (i = 0; i < table->count; i++)
    placed[i] = (struct placed_rule){
        .ip = table->ips[i], .order = (uint32_t)i, .rule = table->rules[i]};
  qsort(placed, table->count, sizeof(*placed), compare_placed);
  for (i = 0; i < table->count; i++) {
    table->ips[i] = placed[i].ip;
    table->rules[i] = placed[i].rule;
  }
  return KVMGDB_OK;
}

static enum kvmgdb_status index_blocks(struct orc_table *table,
                                       struct kvmgdb_error *error) {
  size_t blocks = (size_t)((table->end - table->start) >> ORC_BLOCK_SHIFT) + 2;
  table->blocks = malloc(blocks * sizeof(*table->blocks));
  if (!table->blocks)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, table->start);
  size_t below = 0;
  for (size_t block = 0; block < blocks; block++) {
    while (below < table->count && table->ips[below] < (uint64_t)block
                                                           << ORC_BLOCK_SHIFT)
      below++;
    table->blocks[block] = (uint32_t)below;
  }
  return KVMGDB_OK;
}

/* ---- tables ---------------------------------------------------------------
 */

static void table_free(struct orc_table *table) {
  free(table->ips);
  free(table->rules);
  free(table->blocks);
}

static enum kvmgdb_status table_fill(struct orc_table *table,
                                     uint64_t ip_address, const uint8_t *ips,
                                     const uint8_t *entries, size_t count,
                                     const struct kvmgdb_orc_layout *layout,
                                     struct kvmgdb_error *error) {
  const uint8_t *registers = layout->registers == KVMGDB_ORC_REGISTERS_SP3
                                 ? registers_sp3
                                 : registers_sp5;
  table->ips = malloc((count + 1) * sizeof(*table->ips));
  table->rules = malloc((count + 1) * sizeof(*table->rules));
  if (!table->ips || !table->rules)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, table->start);
  for (size_t i = 0; i < count; i++) {
    int32_t offset;
    memcpy(&offset, ips + 4 * i, sizeof(offset));
    uint64_t ip = ip_address + 4 * i + (uint64_t)(int64_t)offset;
    if (ip < table->start || ip >= table->end)
      continue; /* of code that is not in this range, as init code */
    table->ips[table->count] = (uint32_t)(ip - table->start);
    table->rules[table->count++] =
        decode_rule(layout, registers, entries + i * layout->entry_size);
  }
  enum kvmgdb_status status = sort_rules(table, error);
  return status == KVMGDB_OK ? index_blocks(table, error) : status;
}

enum kvmgdb_status kvmgdb_unwinder_create(struct kvmgdb_unwinder **out,
                                          struct kvmgdb_error *error) {
  if (!out)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  *out = calloc(1, sizeof(**out));
  return *out ? KVMGDB_OK : error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
}

void kvmgdb_unwinder_destroy(struct kvmgdb_unwinder *unwinder) {
  if (!unwinder)
    return;
  for (size_t i = 0; i < unwinder->count; i++)
    table_free(&unwinder->tables[i]);
  free(unwinder->tables);
  free(unwinder->marks);
  free(unwinder);
}

_Static_assert(offsetof(struct orc_table, start) == 0, "see ranges.h");

/* How many tables begin at or below `ip`. */
static size_t tables_below(const struct kvmgdb_unwinder *unwinder,
                           uint64_t ip) {
  return ranges_up_to(unwinder->tables, unwinder->count,
                      sizeof(*unwinder->tables), ip);
}

enum kvmgdb_status kvmgdb_unwinder_add(struct kvmgdb_unwinder *unwinder,
                                       uint64_t start, uint64_t end,
                                       uint64_t ip_address, const void *ips,
                                       const void *entries, size_t count,
                                       struct kvmgdb_orc_layout *layout,
                                       struct kvmgdb_error *error) {
  if (!unwinder || (count && (!ips || !entries)) || !layout || end <= start ||
      end - start > MAX_CODE || count > MAX_ENTRIES ||
      unwinder->count == MAX_TABLES || !layout_is_valid(layout))
    return error_set(error, KVMGDB_ERR_INVALID, 0, start);
  size_t place = tables_below(unwinder, start);
  if ((place > 0 && unwinder->tables[place - 1].end > start) ||
      (place < unwinder->count && unwinder->tables[place].start < end))
    return error_set(error, KVMGDB_ERR_INVALID, EEXIST, start);
  struct orc_table *tables = realloc(
      unwinder->tables, (unwinder->count + 1) * sizeof(*unwinder->tables));
  if (!tables)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, start);
  unwinder->tables = tables;
  if (layout->registers == KVMGDB_ORC_REGISTERS_DETECT)
    layout->registers = detect_registers(layout, entries, count);
  struct orc_table table = {.start = start, .end = end};
  enum kvmgdb_status status =
      table_fill(&table, ip_address, ips, entries, count, layout, error);
  if (status != KVMGDB_OK) {
    table_free(&table);
    return status;
  }
  memmove(tables + place + 1, tables + place,
          (unwinder->count - place) * sizeof(*tables));
  tables[place] = table;
  unwinder->count++;
  return KVMGDB_OK;
}

const struct orc_rule *orc_find(const struct kvmgdb_unwinder *unwinder,
                                uint64_t ip) {
  size_t place = tables_below(unwinder, ip);
  if (place == 0 || ip >= unwinder->tables[place - 1].end)
    return NULL;
  const struct orc_table *table = &unwinder->tables[place - 1];
  uint32_t offset = (uint32_t)(ip - table->start);
  size_t low = table->blocks[offset >> ORC_BLOCK_SHIFT];
  size_t high = table->blocks[(offset >> ORC_BLOCK_SHIFT) + 1];
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (table->ips[middle] <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low ? &table->rules[low - 1] : NULL;
}
