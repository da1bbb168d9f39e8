/* What one type of BTF says: Documentation/bpf/btf.rst, "Type Encoding". */
#include <string.h>

#include "../error.h"
#include "btf.h"

/* Qualifiers and typedefs on one type; and structures within structures. */
#define MAX_REFERENCES 64
#define MAX_NESTING 16
/* Members looked at for one name: a type that holds itself has no end. */
#define MEMBER_BUDGET 16384

#define INT_SIGNED 1
#define INT_CHAR 2
#define INT_BOOL 4

static uint32_t word(const char *extra, size_t index) {
  uint32_t value;
  memcpy(&value, extra + 4 * index, sizeof(value));
  return value;
}

static bool has_size(unsigned kind) {
  switch (kind) {
  case KVMGDB_BTF_INT:
  case KVMGDB_BTF_STRUCT:
  case KVMGDB_BTF_UNION:
  case KVMGDB_BTF_ENUM:
  case KVMGDB_BTF_ENUM64:
  case KVMGDB_BTF_DATASEC:
  case KVMGDB_BTF_FLOAT:
    return true;
  default:
    return false;
  }
}

static void fill_extra(const struct btf_raw *raw, const char *extra,
                       struct kvmgdb_btf_type *type) {
  switch (type->kind) {
  case KVMGDB_BTF_INT: {
    uint32_t encoding = word(extra, 0);
    type->bits = encoding & 0xff;
    type->bit_offset = encoding >> 16 & 0xff;
    type->is_signed = encoding >> 24 & INT_SIGNED ? 1 : 0;
    type->is_char = encoding >> 24 & INT_CHAR ? 1 : 0;
    type->is_bool = encoding >> 24 & INT_BOOL ? 1 : 0;
    break;
  }
  case KVMGDB_BTF_ARRAY:
    type->target = word(extra, 0);
    type->count = word(extra, 2);
    break;
  case KVMGDB_BTF_ENUM:
    /* Before kind_flag told (6.0), all values were signed. */
    type->is_signed = 1;
    break;
  case KVMGDB_BTF_ENUM64:
    type->is_signed = type->kind_flag;
    break;
  case KVMGDB_BTF_FUNC:
    type->linkage = (int32_t)btf_count(raw);
    type->count = 0;
    break;
  case KVMGDB_BTF_VAR:
  case KVMGDB_BTF_DECL_TAG:
    type->linkage = (int32_t)word(extra, 0);
    break;
  default:
    break;
  }
}

enum kvmgdb_status kvmgdb_btf_type(const struct kvmgdb_btf *btf, uint32_t id,
                                   struct kvmgdb_btf_type *type,
                                   struct kvmgdb_error *error) {
  if (!btf || !type)
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  *type = (struct kvmgdb_btf_type){.id = id, .name = ""};
  if (id == 0)
    return KVMGDB_OK;
  struct btf_raw raw;
  const char *extra = btf_find_raw(btf, id, &raw);
  if (!extra)
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, id);
  type->kind = (int)btf_kind(&raw);
  type->name = btf_string(btf, raw.name);
  type->count = btf_count(&raw);
  type->kind_flag = btf_flag(&raw);
  if (has_size(btf_kind(&raw)))
    type->size = raw.size_or_type;
  else
    type->target = raw.size_or_type;
  fill_extra(&raw, extra, type);
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_btf_strip(const struct kvmgdb_btf *btf, uint32_t id,
                                    struct kvmgdb_btf_type *type,
                                    struct kvmgdb_error *error) {
  uint32_t asked = id;
  for (int step = 0; step < MAX_REFERENCES; step++) {
    enum kvmgdb_status status = kvmgdb_btf_type(btf, id, type, error);
    if (status != KVMGDB_OK)
      return status;
    switch (type->kind) {
    case KVMGDB_BTF_TYPEDEF:
    case KVMGDB_BTF_VOLATILE:
    case KVMGDB_BTF_CONST:
    case KVMGDB_BTF_RESTRICT:
    case KVMGDB_BTF_TYPE_TAG:
      id = type->target;
      break;
    default:
      return KVMGDB_OK;
    }
  }
  return error_set(error, KVMGDB_ERR_MALFORMED, 0, asked);
}

enum kvmgdb_status kvmgdb_btf_size(const struct kvmgdb_btf *btf, uint32_t id,
                                   uint64_t *size, struct kvmgdb_error *error) {
  uint64_t elements = 1;
  uint32_t next = id;
  for (int step = 0; step < MAX_REFERENCES; step++) {
    struct kvmgdb_btf_type type;
    enum kvmgdb_status status = kvmgdb_btf_strip(btf, next, &type, error);
    if (status != KVMGDB_OK)
      return status;
    if (type.kind == KVMGDB_BTF_VAR) {
      next = type.target;
    } else if (type.kind == KVMGDB_BTF_ARRAY) {
      if (__builtin_mul_overflow(elements, type.count, &elements))
        break;
      next = type.target;
    } else if (type.kind == KVMGDB_BTF_PTR || has_size((unsigned)type.kind)) {
      uint64_t one = type.kind == KVMGDB_BTF_PTR ? 8 : type.size;
      if (!size)
        return error_set(error, KVMGDB_ERR_INVALID, 0, id);
      if (__builtin_mul_overflow(elements, one, size))
        break;
      return KVMGDB_OK;
    } else {
      break;
    }
  }
  return error_set(error, KVMGDB_ERR_MALFORMED, 0, id);
}

/* `extra` and `raw` are of a type that has at least `index` + 1 of them. */
static void fill_member(const struct kvmgdb_btf *btf, const struct btf_raw *raw,
                        const char *extra, uint32_t index,
                        struct kvmgdb_btf_member *member) {
  *member = (struct kvmgdb_btf_member){.name = ""};
  switch (btf_kind(raw)) {
  case KVMGDB_BTF_FUNC_PROTO:
    member->name = btf_string(btf, word(extra, 2 * (size_t)index));
    member->type = word(extra, 2 * (size_t)index + 1);
    break;
  case KVMGDB_BTF_DATASEC:
    member->type = word(extra, 3 * (size_t)index);
    member->bit_offset = 8 * (uint64_t)word(extra, 3 * (size_t)index + 1);
    member->size = word(extra, 3 * (size_t)index + 2);
    break;
  default: {
    uint32_t offset = word(extra, 3 * (size_t)index + 2);
    member->name = btf_string(btf, word(extra, 3 * (size_t)index));
    member->type = word(extra, 3 * (size_t)index + 1);
    member->bit_offset = btf_flag(raw) ? offset & 0xffffff : offset;
    member->bits = btf_flag(raw) ? offset >> 24 : 0;
  }
  }
}

/* Without kind_flag a bit field's size and place are its integer type's. */
static void apply_integer(const struct kvmgdb_btf *btf,
                          struct kvmgdb_btf_member *member) {
  struct kvmgdb_btf_type type;
  if (member->bits || kvmgdb_btf_strip(btf, member->type, &type, NULL) ||
      type.kind != KVMGDB_BTF_INT || type.bits == 8 * type.size)
    return;
  member->bits = type.bits;
  member->bit_offset += type.bit_offset;
}

static bool has_members(unsigned kind) {
  return kind == KVMGDB_BTF_STRUCT || kind == KVMGDB_BTF_UNION;
}

enum kvmgdb_status kvmgdb_btf_member(const struct kvmgdb_btf *btf, uint32_t id,
                                     uint32_t index,
                                     struct kvmgdb_btf_member *member,
                                     struct kvmgdb_error *error) {
  if (!btf || !member)
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  struct btf_raw raw;
  const char *extra = btf_find_raw(btf, id, &raw);
  if (!extra)
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, id);
  unsigned kind = btf_kind(&raw);
  if (!has_members(kind) && kind != KVMGDB_BTF_FUNC_PROTO &&
      kind != KVMGDB_BTF_DATASEC)
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  if (index >= btf_count(&raw))
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, index);
  fill_member(btf, &raw, extra, index, member);
  if (has_members(kind))
    apply_integer(btf, member);
  return KVMGDB_OK;
}

struct member_search {
  const struct kvmgdb_btf *btf;
  const char *name;
  uint32_t budget;
  struct kvmgdb_btf_member *member;
};

/* Depth first, as a compiler resolves names. */
static bool find_member(struct member_search *search, uint32_t id,
                        uint64_t bit_offset, int depth) {
  struct kvmgdb_btf_type type;
  struct btf_raw raw;
  if (depth == MAX_NESTING ||
      kvmgdb_btf_strip(search->btf, id, &type, NULL) != KVMGDB_OK ||
      !has_members((unsigned)type.kind))
    return false;
  const char *extra = btf_find_raw(search->btf, type.id, &raw);
  for (uint32_t i = 0; extra && i < type.count; i++) {
    struct kvmgdb_btf_member member;
    if (search->budget == 0)
      return false;
    search->budget--;
    fill_member(search->btf, &raw, extra, i, &member);
    if (!*member.name) {
      if (find_member(search, member.type, bit_offset + member.bit_offset,
                      depth + 1))
        return true;
    } else if (strcmp(member.name, search->name) == 0) {
      apply_integer(search->btf, &member);
      member.bit_offset += bit_offset;
      *search->member = member;
      return true;
    }
  }
  return false;
}

enum kvmgdb_status kvmgdb_btf_find_member(const struct kvmgdb_btf *btf,
                                          uint32_t id, const char *name,
                                          struct kvmgdb_btf_member *member,
                                          struct kvmgdb_error *error) {
  if (!btf || !name || !*name || !member)
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  struct member_search search = {
      .btf = btf, .name = name, .budget = MEMBER_BUDGET, .member = member};
  if (find_member(&search, id, 0, 0))
    return KVMGDB_OK;
  return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, id);
}

enum kvmgdb_status kvmgdb_btf_value(const struct kvmgdb_btf *btf, uint32_t id,
                                    uint32_t index,
                                    struct kvmgdb_btf_value *value,
                                    struct kvmgdb_error *error) {
  if (!btf || !value)
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  struct btf_raw raw;
  const char *extra = btf_find_raw(btf, id, &raw);
  if (!extra || index >= btf_count(&raw))
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, extra ? index : id);
  switch (btf_kind(&raw)) {
  case KVMGDB_BTF_ENUM: {
    uint32_t number = word(extra, 2 * (size_t)index + 1);
    value->name = btf_string(btf, word(extra, 2 * (size_t)index));
    value->value = (int32_t)number;
    return KVMGDB_OK;
  }
  case KVMGDB_BTF_ENUM64:
    value->name = btf_string(btf, word(extra, 3 * (size_t)index));
    value->value =
        (int64_t)(word(extra, 3 * (size_t)index + 1) |
                  (uint64_t)word(extra, 3 * (size_t)index + 2) << 32);
    return KVMGDB_OK;
  default:
    return error_set(error, KVMGDB_ERR_INVALID, 0, id);
  }
}
