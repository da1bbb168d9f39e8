/*
 * Typed variables, and per-CPU data. The latter is reached through
 *
 *   struct percpu_area *percpu[nr_cpu_ids]
 *
 * which lies over __per_cpu_offset[]: the area has each variable of the section
 * at the value of its symbol, as this_cpu_ptr() counts. For a module it is
 * percpu_NAME, a struct percpu_area_NAME.
 */
#include "variables.h"

#include <stdio.h>

#define PERCPU_SECTION ".data..percpu"
#define POINTER_SIZE 8
#define MAX_OWN_NAME 128

static void put_location(struct info *info, uint64_t address) {
  put_uleb(info->out, 9);
  put_u8(info->out, DW_OP_addr);
  put_u64(info->out, address);
}

/*
 * The value of a per-CPU symbol, which may be an offset. GDB takes an address
 * that it can read off an expression for one of the unit's code, and then
 * misses that in its symbols; it cannot read it off this one.
 */
static void put_percpu_location(struct info *info, uint64_t value) {
  put_uleb(info->out, 12);
  put_u8(info->out, DW_OP_lit0);
  put_u8(info->out, DW_OP_neg);
  put_u8(info->out, DW_OP_addr);
  put_u64(info->out, value);
  put_u8(info->out, DW_OP_plus);
}

/* A reference within the unit to an entry of ours, filled in later. */
static size_t put_local_reference(struct info *info) {
  put_u32(info->out, 0);
  return info->out->length - 4;
}

static void set_local_reference(struct info *info, size_t at, size_t target) {
  buffer_patch_u32(info->out, at, (uint32_t)(target - info->start));
}

/* Pointers and arrays that need not be in the BTF. */
static void put_variable(struct info *info,
                         const struct kvmgdb_debug_variable *variable) {
  uint32_t type = info_resolve(info, variable->type);
  if (type == DAMAGED || (type == 0 && !variable->is_pointer))
    return;
  uint32_t name = info_add_text(info, variable->name);
  bool plain = !variable->is_pointer && !variable->is_array;
  put_uleb(info->out, ABBREV_VARIABLE);
  put_u32(info->out, name);
  size_t to_type = 0;
  if (plain)
    info_refer(info, type);
  else
    to_type = put_local_reference(info);
  put_location(info, variable->address);
  if (variable->is_array) {
    size_t to_element = 0;
    set_local_reference(info, to_type, info->out->length);
    put_uleb(info->out, ABBREV_ARRAY);
    if (variable->is_pointer)
      to_element = put_local_reference(info);
    else
      info_refer(info, type);
    put_uleb(info->out, variable->elements ? ABBREV_BOUND : ABBREV_BOUND_OPEN);
    if (variable->elements)
      put_uleb(info->out, variable->elements);
    put_u8(info->out, 0);
    to_type = to_element;
  }
  if (variable->is_pointer) {
    set_local_reference(info, to_type, info->out->length);
    put_uleb(info->out, type ? ABBREV_POINTER : ABBREV_POINTER_VOID);
    put_uleb(info->out, POINTER_SIZE);
    if (type)
      info_refer(info, type);
  }
}

/* ---- per-CPU data ----------------------------------------------------------
 */

static bool is_percpu_section(const struct kvmgdb_btf *btf, uint32_t id,
                              struct btf_raw *raw) {
  return btf_find_raw(btf, id, raw) && btf_kind(raw) == KVMGDB_BTF_DATASEC &&
         strcmp(btf_string(btf, raw->name), PERCPU_SECTION) == 0;
}

/* The variable that an entry of the section names: NULL for none. */
static bool find_variable(const struct info *info, uint32_t section,
                          uint32_t index, uint64_t start, struct btf_raw *raw,
                          uint64_t *value) {
  struct kvmgdb_btf_member entry;
  if (kvmgdb_btf_member(info->btf, section, index, &entry, NULL) != KVMGDB_OK)
    return false;
  if (!btf_find_raw(info->btf, entry.type, raw) ||
      btf_kind(raw) != KVMGDB_BTF_VAR || !*btf_string(info->btf, raw->name))
    return false;
  *value = start + entry.bit_offset / 8;
  uint32_t type = info_resolve(info, raw->size_or_type);
  return type != 0 && type != DAMAGED;
}

static void put_percpu_variables(struct info *info, uint32_t section,
                                 uint32_t count, uint64_t start) {
  struct btf_raw raw;
  uint64_t value;
  for (uint32_t i = 0; i < count; i++)
    if (find_variable(info, section, i, start, &raw, &value)) {
      put_uleb(info->out, ABBREV_VARIABLE);
      put_u32(info->out, info_string(info, raw.name));
      info_refer(info, info_resolve(info, raw.size_or_type));
      put_percpu_location(info, value);
    }
}

/* `text`, in a module's file with the module's name: the kernel's has the
 * other. */
static uint32_t add_own_name(struct info *info, const char *text) {
  char name[MAX_OWN_NAME];
  if (!info->btf->base)
    return info_add_text(info, text);
  snprintf(name, sizeof(name), "%s_%s", text, info->own_name);
  return info_add_text(info, name);
}

static void put_percpu_area(struct info *info, uint32_t section, uint32_t count,
                            uint64_t start, uint64_t size) {
  struct btf_raw raw;
  uint64_t value;
  uint32_t name = add_own_name(info, "percpu_area");
  put_uleb(info->out, ABBREV_PERCPU_AREA);
  put_uleb(info->out, size);
  put_u32(info->out, name);
  for (uint32_t i = 0; i < count; i++)
    if (find_variable(info, section, i, start, &raw, &value)) {
      put_uleb(info->out, ABBREV_PERCPU_MEMBER);
      info_refer(info, info_resolve(info, raw.size_or_type));
      put_sleb(info->out, (int64_t)value);
      put_u32(info->out, info_string(info, raw.name));
    }
  put_u8(info->out, 0);
}

static void put_percpu(struct info *info, uint32_t section,
                       const struct btf_raw *raw,
                       const struct kvmgdb_debug_percpu *percpu) {
  uint32_t count = btf_count(raw);
  size_t area = info->out->length;
  put_percpu_area(info, section, count, percpu->start, raw->size_or_type);
  put_percpu_variables(info, section, count, percpu->start);
  if (!percpu->table)
    return;
  uint32_t name = add_own_name(info, "percpu");
  put_uleb(info->out, ABBREV_VARIABLE);
  put_u32(info->out, name);
  size_t to_array = put_local_reference(info);
  put_location(info, percpu->table);
  set_local_reference(info, to_array, info->out->length);
  put_uleb(info->out, ABBREV_ARRAY);
  size_t to_pointer = put_local_reference(info);
  put_uleb(info->out, ABBREV_BOUND);
  put_uleb(info->out, percpu->cpus);
  put_u8(info->out, 0);
  set_local_reference(info, to_pointer, info->out->length);
  put_uleb(info->out, ABBREV_POINTER);
  put_uleb(info->out, POINTER_SIZE);
  set_local_reference(info, put_local_reference(info), area);
}

void info_put_variables(struct info *info,
                        const struct kvmgdb_debug_variable *variables,
                        size_t count,
                        const struct kvmgdb_debug_percpu *percpu) {
  unit_begin(info, 0, 0);
  for (size_t i = 0; i < count; i++)
    put_variable(info, &variables[i]);
  for (uint32_t id = info->btf->start; percpu && id < info->btf->end; id++) {
    struct btf_raw raw;
    if (is_percpu_section(info->btf, id, &raw)) {
      put_percpu(info, id, &raw, percpu);
      break;
    }
  }
  unit_end(info);
}
