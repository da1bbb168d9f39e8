/* Units, references within them, and the strings that they share. */
#include "info.h"

#include <stdlib.h>

#include "../error.h"

/* What follows one another without a structure in between: pointers to arrays
 * of pointers. Debuggers follow it by recursion. */
#define MAX_CHAIN 64
#define UNIT_VERSION_AT 4
#define ADDRESS_SIZE 8

struct fixup {
  uint32_t at;
  uint32_t id;
};

static unsigned kind_of(const struct kvmgdb_btf *btf, uint32_t id,
                        struct btf_raw *raw) {
  return btf_find_raw(btf, id, raw) ? btf_kind(raw) : KVMGDB_BTF_VOID;
}

/* ---- tags ------------------------------------------------------------------
 */

/* Tags of one table are those of a chain of its index; hostile ones may all
 * have one hash. */
#define MAX_NAMESAKES 256

static bool has_namesake(const struct kvmgdb_btf *table, uint32_t skip,
                         const char *name) {
  uint32_t id;
  const uint32_t kinds = 1u << KVMGDB_BTF_STRUCT | 1u << KVMGDB_BTF_UNION |
                         1u << KVMGDB_BTF_ENUM | 1u << KVMGDB_BTF_ENUM64;
  if (kvmgdb_btf_find(table, name, kinds, &id, NULL) != KVMGDB_OK)
    return false;
  if (id != skip)
    return true;
  /* Found itself: another may follow in its chain, or be in the base. */
  uint32_t next = table->next[id - table->start];
  for (int step = 0; next; next = table->next[next - 1], step++) {
    struct btf_raw raw;
    if (step == MAX_NAMESAKES)
      return true;
    if (is_tag(kind_of(table, table->start + next - 1, &raw)) &&
        strcmp(btf_string(table, raw.name), name) == 0)
      return true;
  }
  return table->base && has_namesake(table->base, 0, name);
}

static void find_tags(struct info *info, const struct kvmgdb_btf *table) {
  for (uint32_t id = table->start; id < table->end; id++) {
    struct btf_raw raw;
    unsigned kind = kind_of(table, id, &raw);
    if (kind == KVMGDB_BTF_ENUM64 ||
        (kind == KVMGDB_BTF_ENUM && btf_flag(&raw)))
      info->signs_are_told = true;
    const char *name = is_tag(kind) ? btf_string(table, raw.name) : "";
    if (*name)
      info->alone[id] = !has_namesake(table, id, name);
  }
}

/* ---- strings ---------------------------------------------------------------
 */

uint32_t info_add_text(struct info *info, const char *text) {
  uint32_t place = (uint32_t)info->strings->length;
  put_text(info->strings, text);
  return place;
}

uint32_t info_string(struct info *info, uint32_t offset) {
  const struct kvmgdb_btf *btf = info->btf;
  if (offset >= btf->string_start && offset < btf->string_end)
    return offset - btf->string_start + 1; /* place 0 is the empty string */
  if (!btf->base || offset >= btf->string_start)
    return 0;
  if (!info->copies[offset])
    info->copies[offset] = info_add_text(info, btf_string(btf, offset)) + 1;
  return info->copies[offset] - 1;
}

enum kvmgdb_status info_init(struct info *info, struct kvmgdb_debug *debug,
                             const struct kvmgdb_btf *btf, const char *producer,
                             const char *name, struct kvmgdb_error *error) {
  *info = (struct info){.btf = btf,
                        .own_name = name,
                        .out = &debug->sections[KVMGDB_DEBUG_INFO],
                        .strings = &debug->sections[KVMGDB_DEBUG_STR]};
  info->units = calloc(btf->end, sizeof(*info->units));
  info->places = calloc(btf->end, sizeof(*info->places));
  info->queue = calloc(btf->end, sizeof(*info->queue));
  info->alone = calloc(btf->end, sizeof(*info->alone));
  info->copies = calloc((size_t)btf->string_start + 1, sizeof(*info->copies));
  if (!info->units || !info->places || !info->queue || !info->alone ||
      !info->copies)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  if (btf->base)
    find_tags(info, btf->base);
  find_tags(info, btf);
  put_u8(info->strings, 0);
  buffer_put(info->strings, btf->strings, btf->strings_length);
  info->producer = info_add_text(info, producer);
  info->name = info_add_text(info, name);
  info->damaged = info_add_text(info, "damaged type");
  return KVMGDB_OK;
}

void info_deinit(struct info *info) {
  free(info->units);
  free(info->places);
  free(info->queue);
  free(info->alone);
  free(info->copies);
  buffer_deinit(&info->fixups);
}

/* ---- units -----------------------------------------------------------------
 */

void unit_begin(struct info *info, uint64_t low, uint64_t high) {
  info->unit++;
  info->queued = info->written = 0;
  info->home_first = info->home_end = 0;
  info->start = info->out->length;
  info->fixups.length = 0;
  put_u32(info->out, 0);
  /* Location lists of DWARF 5 take a quarter of the space of those before. */
  if (high > low) {
    put_u16(info->out, 5);
    put_u8(info->out, DW_UT_compile);
    put_u8(info->out, ADDRESS_SIZE);
    put_u32(info->out, 0);
  } else {
    put_u16(info->out, 4);
    put_u32(info->out, 0);
    put_u8(info->out, ADDRESS_SIZE);
  }
  put_uleb(info->out, high > low ? ABBREV_CODE_UNIT : ABBREV_TYPE_UNIT);
  put_u32(info->out, info->producer);
  put_u8(info->out, DW_LANG_C99);
  put_u32(info->out, info->name);
  if (high > low) {
    put_u64(info->out, low);
    put_u32(info->out, (uint32_t)(high - low));
  }
}

static void apply_fixups(struct info *info) {
  uint32_t damaged = 0;
  for (size_t at = 0; at < info->fixups.length; at += sizeof(struct fixup)) {
    struct fixup fixup;
    memcpy(&fixup, info->fixups.data + at, sizeof(fixup));
    if (fixup.id == DAMAGED && !damaged) {
      damaged = (uint32_t)(info->out->length - info->start);
      put_uleb(info->out, ABBREV_DAMAGED);
      put_u32(info->out, info->damaged);
    }
    buffer_patch_u32(info->out, fixup.at,
                     fixup.id == DAMAGED ? damaged : info->places[fixup.id]);
  }
}

void unit_end(struct info *info) {
  while (info->written < info->queued && info->out->status == KVMGDB_OK) {
    uint32_t id = info->queue[info->written++];
    info->places[id] = (uint32_t)(info->out->length - info->start);
    info_put_type(info, id);
  }
  apply_fixups(info);
  put_u8(info->out, 0);
  buffer_patch_u32(
      info->out, info->start,
      (uint32_t)(info->out->length - info->start - UNIT_VERSION_AT));
  if (info->fixups.status != KVMGDB_OK && info->out->status == KVMGDB_OK)
    info->out->status = info->fixups.status;
}

/* ---- references ------------------------------------------------------------
 */

uint32_t info_resolve(const struct info *info, uint32_t id) {
  uint32_t resolved = id, next = id;
  bool in_tags = true;
  for (int step = 0; step < MAX_CHAIN; step++) {
    struct btf_raw raw;
    const char *extra = btf_find_raw(info->btf, next, &raw);
    if (next == 0)
      return resolved;
    if (!extra)
      return DAMAGED;
    unsigned kind = btf_kind(&raw);
    in_tags = in_tags && kind == KVMGDB_BTF_TYPE_TAG;
    switch (kind) {
    case KVMGDB_BTF_INT:
    case KVMGDB_BTF_FLOAT:
    case KVMGDB_BTF_STRUCT:
    case KVMGDB_BTF_UNION:
    case KVMGDB_BTF_ENUM:
    case KVMGDB_BTF_ENUM64:
    case KVMGDB_BTF_FWD:
      return resolved;
    case KVMGDB_BTF_PTR:
    case KVMGDB_BTF_TYPEDEF:
    case KVMGDB_BTF_CONST:
    case KVMGDB_BTF_VOLATILE:
    case KVMGDB_BTF_RESTRICT:
    case KVMGDB_BTF_FUNC_PROTO:
    case KVMGDB_BTF_TYPE_TAG:
      next = raw.size_or_type;
      break;
    case KVMGDB_BTF_ARRAY:
      memcpy(&next, extra, sizeof(next));
      break;
    default:
      return DAMAGED;
    }
    if (in_tags)
      resolved = next;
  }
  return DAMAGED;
}

void info_refer(struct info *info, uint32_t id) {
  struct fixup fixup = {.at = (uint32_t)info->out->length, .id = id};
  put_u32(info->out, 0);
  buffer_put(&info->fixups, &fixup, sizeof(fixup));
  if (id == DAMAGED || info->units[id] == info->unit)
    return;
  info->units[id] = info->unit;
  info->queue[info->queued++] = id;
}
