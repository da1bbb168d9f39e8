/* An entry for each kind of type: Documentation/bpf/btf.rst, "Type Encoding".
 */
#include "info.h"

/* As many as GDB reads in some milliseconds. */
#define TYPES_PER_UNIT 2048

/* A type that is never void: an element, a member, a parameter. */
static void refer_to(struct info *info, uint32_t id) {
  id = info_resolve(info, id);
  info_refer(info, id ? id : DAMAGED);
}

static void put_name(struct info *info, const struct btf_raw *raw) {
  put_u32(info->out, info_string(info, raw->name));
}

static uint8_t encoding_of(const struct kvmgdb_btf_type *type) {
  bool is_char =
      type->is_char || (type->size == 1 && strstr(type->name, "char"));
  if (type->is_bool)
    return DW_ATE_boolean;
  if (is_char)
    return type->is_signed ? DW_ATE_signed_char : DW_ATE_unsigned_char;
  return type->is_signed ? DW_ATE_signed : DW_ATE_unsigned;
}

static void put_base(struct info *info, const struct btf_raw *raw,
                     uint8_t encoding) {
  put_uleb(info->out, ABBREV_BASE);
  put_name(info, raw);
  put_uleb(info->out, raw->size_or_type);
  put_u8(info->out, encoding);
}

static void put_reference(struct info *info, enum abbreviation typed,
                          uint32_t target) {
  uint32_t id = info_put_shape(info, typed, target);
  if (id)
    info_refer(info, id);
}

/*
 * A flexible array has a bound, too, of no elements: GDB 18 takes a structure
 * with an open one for one whose size must be computed from its content, and
 * reads address 0 for a pointer to it that is optimized out.
 */
static void put_array(struct info *info, const struct kvmgdb_btf_type *type) {
  put_uleb(info->out, ABBREV_ARRAY);
  refer_to(info, type->target);
  put_uleb(info->out, ABBREV_BOUND);
  put_uleb(info->out, type->count);
  put_u8(info->out, 0);
}

/* ---- structures and unions -------------------------------------------------
 */

static void put_member(struct info *info, uint32_t owner, uint32_t name,
                       uint32_t index) {
  struct kvmgdb_btf_member member;
  if (kvmgdb_btf_member(info->btf, owner, index, &member, NULL) != KVMGDB_OK)
    return;
  bool anonymous = !*member.name;
  if (member.bits) {
    put_uleb(info->out, ABBREV_BITS + (unsigned)anonymous);
    refer_to(info, member.type);
    put_uleb(info->out, member.bits);
    put_uleb(info->out, member.bit_offset);
  } else {
    put_uleb(info->out, ABBREV_MEMBER + (unsigned)anonymous);
    refer_to(info, member.type);
    put_uleb(info->out, member.bit_offset / 8);
  }
  if (!anonymous)
    put_u32(info->out, info_string(info, name));
}

static void put_aggregate(struct info *info, uint32_t id,
                          const struct btf_raw *raw, const char *extra,
                          enum abbreviation named) {
  bool anonymous = !*btf_string(info->btf, raw->name);
  put_uleb(info->out, named + (unsigned)anonymous);
  put_uleb(info->out, raw->size_or_type);
  if (!anonymous)
    put_name(info, raw);
  for (uint32_t i = 0; i < btf_count(raw); i++) {
    struct btf_raw_member member;
    memcpy(&member, extra + i * sizeof(member), sizeof(member));
    put_member(info, id, member.name, i);
  }
  put_u8(info->out, 0);
}

/* ---- enumerations ----------------------------------------------------------
 */

/* Until 6.0 nothing told whether values were signed: they are, if one is
 * negative. */
static bool is_signed(const struct info *info, uint32_t id,
                      const struct btf_raw *raw) {
  struct kvmgdb_btf_value value;
  if (info->signs_are_told)
    return btf_flag(raw);
  for (uint32_t i = 0; i < btf_count(raw); i++)
    if (kvmgdb_btf_value(info->btf, id, i, &value, NULL) == KVMGDB_OK &&
        value.value < 0)
      return true;
  return false;
}

static void put_enumeration(struct info *info, uint32_t id,
                            const struct btf_raw *raw, const char *extra) {
  bool anonymous = !*btf_string(info->btf, raw->name);
  bool wide = btf_kind(raw) == KVMGDB_BTF_ENUM64;
  bool negative = is_signed(info, id, raw);
  put_uleb(info->out, ABBREV_ENUM + (unsigned)anonymous);
  put_uleb(info->out, raw->size_or_type);
  if (!anonymous)
    put_name(info, raw);
  for (uint32_t i = 0; i < btf_count(raw); i++) {
    struct kvmgdb_btf_value value;
    uint32_t name;
    memcpy(&name, extra + (wide ? 12 : 8) * (size_t)i, sizeof(name));
    if (kvmgdb_btf_value(info->btf, id, i, &value, NULL) != KVMGDB_OK)
      continue;
    put_uleb(info->out, negative ? ABBREV_VALUE_SIGNED : ABBREV_VALUE_UNSIGNED);
    put_u32(info->out, info_string(info, name));
    if (negative)
      put_sleb(info->out, value.value);
    else
      put_uleb(info->out, wide ? (uint64_t)value.value : (uint32_t)value.value);
  }
  put_u8(info->out, 0);
}

/* ---- functions -------------------------------------------------------------
 */

void info_put_parameters(struct info *info, uint32_t prototype,
                         const uint32_t *places, uint32_t located) {
  struct btf_raw raw;
  const char *extra = btf_find_raw(info->btf, prototype, &raw);
  uint32_t count =
      extra && btf_kind(&raw) == KVMGDB_BTF_FUNC_PROTO ? btf_count(&raw) : 0;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t words[2]; /* name, type */
    memcpy(words, extra + i * sizeof(words), sizeof(words));
    if (i + 1 == count && words[1] == 0) {
      put_uleb(info->out, ABBREV_PARAMETERS_OPEN);
      break;
    }
    bool named = *btf_string(info->btf, words[0]) != '\0';
    bool placed = named && i < located;
    put_uleb(info->out, placed  ? ABBREV_PARAMETER_LOCATED
                        : named ? ABBREV_PARAMETER_NAMED
                                : ABBREV_PARAMETER);
    refer_to(info, words[1]);
    if (named)
      put_u32(info->out, info_string(info, words[0]));
    if (placed)
      put_u32(info->out, places[i]);
  }
  put_u8(info->out, 0);
}

/* ---- all kinds --------------------------------------------------------------
 */

static bool put_declared(struct info *info, uint32_t id,
                         const struct btf_raw *raw) {
  if (!info->alone[id] || (id >= info->home_first && id < info->home_end))
    return false;
  unsigned kind = btf_kind(raw);
  put_uleb(info->out, kind == KVMGDB_BTF_STRUCT  ? ABBREV_STRUCT_DECLARED
                      : kind == KVMGDB_BTF_UNION ? ABBREV_UNION_DECLARED
                                                 : ABBREV_ENUM_DECLARED);
  put_name(info, raw);
  return true;
}

void info_put_type(struct info *info, uint32_t id) {
  struct kvmgdb_btf_type type;
  struct btf_raw raw;
  const char *extra = btf_find_raw(info->btf, id, &raw);
  if (!extra || kvmgdb_btf_type(info->btf, id, &type, NULL) != KVMGDB_OK ||
      put_declared(info, id, &raw))
    return;
  switch (type.kind) {
  case KVMGDB_BTF_INT:
    put_base(info, &raw, encoding_of(&type));
    break;
  case KVMGDB_BTF_FLOAT:
    put_base(info, &raw, DW_ATE_float);
    break;
  case KVMGDB_BTF_PTR: {
    uint32_t target = info_put_shape(info, ABBREV_POINTER, type.target);
    put_uleb(info->out, 8);
    if (target)
      info_refer(info, target);
    break;
  }
  case KVMGDB_BTF_ARRAY:
    put_array(info, &type);
    break;
  case KVMGDB_BTF_STRUCT:
    put_aggregate(info, id, &raw, extra, ABBREV_STRUCT);
    break;
  case KVMGDB_BTF_UNION:
    put_aggregate(info, id, &raw, extra, ABBREV_UNION);
    break;
  case KVMGDB_BTF_ENUM:
  case KVMGDB_BTF_ENUM64:
    put_enumeration(info, id, &raw, extra);
    break;
  case KVMGDB_BTF_FWD:
    put_uleb(info->out,
             type.kind_flag ? ABBREV_UNION_DECLARED : ABBREV_STRUCT_DECLARED);
    put_name(info, &raw);
    break;
  case KVMGDB_BTF_TYPEDEF: {
    uint32_t target = info_put_shape(info, ABBREV_TYPEDEF, type.target);
    put_name(info, &raw);
    if (target)
      info_refer(info, target);
    break;
  }
  case KVMGDB_BTF_CONST:
    put_reference(info, ABBREV_CONST, type.target);
    break;
  case KVMGDB_BTF_VOLATILE:
    put_reference(info, ABBREV_VOLATILE, type.target);
    break;
  case KVMGDB_BTF_RESTRICT:
    put_reference(info, ABBREV_RESTRICT, type.target);
    break;
  default: /* FUNC_PROTO: info_resolve lets no other kind through */
    put_reference(info, ABBREV_SUBROUTINE, type.target);
    info_put_parameters(info, id, NULL, 0);
    break;
  }
}

/* Kinds that have a name to be found by. */
static bool is_found_by_name(const struct kvmgdb_btf *btf,
                             const struct btf_raw *raw) {
  unsigned kind = btf_kind(raw);
  return (is_tag(kind) || kind == KVMGDB_BTF_TYPEDEF ||
          kind == KVMGDB_BTF_INT || kind == KVMGDB_BTF_FLOAT) &&
         *btf_string(btf, raw->name);
}

void info_put_types(struct info *info) {
  const struct kvmgdb_btf *btf = info->btf;
  for (uint32_t first = btf->start; first < btf->end;) {
    uint32_t end =
        btf->end - first > TYPES_PER_UNIT ? first + TYPES_PER_UNIT : btf->end;
    unit_begin(info, 0, 0);
    info->home_first = first;
    info->home_end = end;
    for (uint32_t id = first; id < end; id++) {
      struct btf_raw raw;
      if (!btf_find_raw(btf, id, &raw) || !is_found_by_name(btf, &raw) ||
          info_resolve(info, id) != id || info->units[id] == info->unit)
        continue;
      info->units[id] = info->unit;
      info->queue[info->queued++] = id;
    }
    unit_end(info);
    first = end;
  }
}
