/* Checking and indexing BTF: each type's offset, and a hash of the names. */
#include "btf.h"

#include <stdlib.h>
#include <string.h>

#include "../error.h"

#define BTF_MAGIC 0xeb9f
#define MAX_BTF (UINT32_C(128) << 20)

struct btf_header {
  uint16_t magic;
  uint8_t version;
  uint8_t flags;
  uint32_t header_length;
  uint32_t type_offset;
  uint32_t type_length;
  uint32_t string_offset;
  uint32_t string_length;
};

static inline void cleanup_btf(struct kvmgdb_btf **btf) {
  kvmgdb_btf_destroy(*btf);
}

#define SCOPED_BTF __attribute__((cleanup(cleanup_btf)))

bool btf_extra(const struct btf_raw *raw, size_t *extra) {
  size_t count = btf_count(raw);
  switch (btf_kind(raw)) {
  case KVMGDB_BTF_INT:
  case KVMGDB_BTF_VAR:
  case KVMGDB_BTF_DECL_TAG:
    *extra = 4;
    return true;
  case KVMGDB_BTF_ARRAY:
    *extra = 12;
    return true;
  case KVMGDB_BTF_STRUCT:
  case KVMGDB_BTF_UNION:
  case KVMGDB_BTF_DATASEC:
  case KVMGDB_BTF_ENUM64:
    *extra = 12 * count;
    return true;
  case KVMGDB_BTF_ENUM:
  case KVMGDB_BTF_FUNC_PROTO:
    *extra = 8 * count;
    return true;
  case KVMGDB_BTF_PTR:
  case KVMGDB_BTF_FWD:
  case KVMGDB_BTF_TYPEDEF:
  case KVMGDB_BTF_VOLATILE:
  case KVMGDB_BTF_CONST:
  case KVMGDB_BTF_RESTRICT:
  case KVMGDB_BTF_FUNC:
  case KVMGDB_BTF_FLOAT:
  case KVMGDB_BTF_TYPE_TAG:
    *extra = 0;
    return true;
  default:
    return false;
  }
}

const char *btf_string(const struct kvmgdb_btf *btf, uint32_t offset) {
  while (btf->base && offset < btf->string_start)
    btf = btf->base;
  if (offset < btf->string_start || offset >= btf->string_end)
    return "";
  return btf->strings + (offset - btf->string_start);
}

const char *btf_find_raw(const struct kvmgdb_btf *btf, uint32_t id,
                         struct btf_raw *raw) {
  while (btf->base && id < btf->start)
    btf = btf->base;
  if (id < btf->start || id >= btf->end)
    return NULL;
  const char *at = btf->types + btf->offsets[id - btf->start];
  memcpy(raw, at, sizeof(*raw));
  return at + sizeof(*raw);
}

static bool in_bounds(uint32_t offset, uint32_t length, size_t available) {
  return offset <= available && length <= available - offset;
}

/* Finds the two sections; error->address is the offset of what is wrong. */
static enum kvmgdb_status read_header(struct kvmgdb_btf *btf, size_t length,
                                      struct kvmgdb_error *error) {
  struct btf_header header;
  if (length < sizeof(header))
    return error_set(error, KVMGDB_ERR_MALFORMED, 0, 0);
  memcpy(&header, btf->data, sizeof(header));
  if (header.magic != BTF_MAGIC || header.version != 1 ||
      header.header_length < sizeof(header) || header.header_length > length)
    return error_set(error, KVMGDB_ERR_MALFORMED, 0, 0);
  size_t body = length - header.header_length;
  if (!in_bounds(header.type_offset, header.type_length, body) ||
      !in_bounds(header.string_offset, header.string_length, body) ||
      header.string_length > UINT32_MAX - btf->string_start)
    return error_set(error, KVMGDB_ERR_MALFORMED, 0, 8);
  btf->types = btf->data + header.header_length + header.type_offset;
  btf->types_length = header.type_length;
  btf->strings = btf->data + header.header_length + header.string_offset;
  btf->strings_length = header.string_length;
  btf->string_end = btf->string_start + header.string_length;
  /* Every string ends within the section. */
  if (header.string_length && btf->strings[header.string_length - 1] != '\0')
    return error_set(error, KVMGDB_ERR_MALFORMED, 0,
                     (uint64_t)header.header_length + header.string_offset);
  return KVMGDB_OK;
}

static bool next_type(const struct kvmgdb_btf *btf, size_t *at,
                      struct btf_raw *raw) {
  size_t extra;
  if (btf->types_length - *at < sizeof(*raw))
    return false;
  memcpy(raw, btf->types + *at, sizeof(*raw));
  if (!btf_extra(raw, &extra) || btf->types_length - *at - sizeof(*raw) < extra)
    return false;
  *at += sizeof(*raw) + extra;
  return true;
}

static enum kvmgdb_status index_types(struct kvmgdb_btf *btf,
                                      struct kvmgdb_error *error) {
  size_t most = btf->types_length / sizeof(struct btf_raw);
  if (most > UINT32_MAX - btf->start - 1)
    return error_set(error, KVMGDB_ERR_MALFORMED, 0, 12);
  btf->offsets = malloc((most + 1) * sizeof(*btf->offsets));
  if (!btf->offsets)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  uint32_t count = 0;
  struct btf_raw raw;
  for (size_t at = 0; at < btf->types_length;) {
    btf->offsets[count++] = (uint32_t)at;
    if (next_type(btf, &at, &raw))
      continue;
    size_t extra;
    if (btf->types_length - at < sizeof(raw) || btf_extra(&raw, &extra) ||
        btf_kind(&raw) == KVMGDB_BTF_VOID)
      return error_set(error, KVMGDB_ERR_MALFORMED, 0,
                       (uint64_t)(btf->types - btf->data) + at);
    btf->unknown_kind = btf_kind(&raw);
    count--;
    break;
  }
  btf->end = btf->start + count;
  return KVMGDB_OK;
}

/* FNV-1a. */
static uint32_t hash_name(const char *name) {
  uint32_t hash = UINT32_C(2166136261);
  for (; *name; name++)
    hash = (hash ^ (uint8_t)*name) * UINT32_C(16777619);
  return hash;
}

static enum kvmgdb_status index_names(struct kvmgdb_btf *btf,
                                      struct kvmgdb_error *error) {
  uint32_t count = btf->end - btf->start;
  uint32_t buckets = 16;
  while (buckets < count)
    buckets *= 2;
  btf->buckets = calloc(buckets, sizeof(*btf->buckets));
  btf->next = calloc((size_t)count + 1, sizeof(*btf->next));
  if (!btf->buckets || !btf->next)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  btf->bucket_mask = buckets - 1;
  for (uint32_t i = count; i-- > 0;) {
    struct btf_raw raw;
    btf_find_raw(btf, btf->start + i, &raw);
    if (raw.name == 0)
      continue;
    uint32_t *bucket =
        &btf->buckets[hash_name(btf_string(btf, raw.name)) & btf->bucket_mask];
    btf->next[i] = *bucket;
    *bucket = i + 1;
  }
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_btf_create(const void *data, size_t length,
                                     const struct kvmgdb_btf *base,
                                     struct kvmgdb_btf **out,
                                     struct kvmgdb_error *error) {
  if (!data || !out || length > MAX_BTF ||
      (base && (base->base || base->unknown_kind)))
    return error_set(error, KVMGDB_ERR_INVALID, 0, length);
  SCOPED_BTF struct kvmgdb_btf *btf = calloc(1, sizeof(*btf));
  if (!btf || !(btf->data = malloc(length + 1)))
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  memcpy(btf->data, data, length);
  btf->base = base;
  btf->start = base ? base->end : 1;
  btf->string_start = base ? base->string_end : 0;
  enum kvmgdb_status status = read_header(btf, length, error);
  if (status == KVMGDB_OK)
    status = index_types(btf, error);
  if (status == KVMGDB_OK)
    status = index_names(btf, error);
  if (status != KVMGDB_OK)
    return status;
  *out = btf;
  btf = NULL;
  return KVMGDB_OK;
}

void kvmgdb_btf_destroy(struct kvmgdb_btf *btf) {
  if (!btf)
    return;
  free(btf->data);
  free(btf->offsets);
  free(btf->next);
  free(btf->buckets);
  free(btf);
}

uint32_t kvmgdb_btf_unknown_kind(const struct kvmgdb_btf *btf) {
  return btf ? btf->unknown_kind : 0;
}

uint32_t kvmgdb_btf_end(const struct kvmgdb_btf *btf) {
  return btf ? btf->end : 0;
}

uint32_t kvmgdb_btf_start(const struct kvmgdb_btf *btf) {
  return btf ? btf->start : 0;
}

enum kvmgdb_status kvmgdb_btf_find(const struct kvmgdb_btf *btf,
                                   const char *name, uint32_t kinds,
                                   uint32_t *id, struct kvmgdb_error *error) {
  if (!btf || !name || !id)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  uint32_t hash = hash_name(name);
  for (; btf; btf = btf->base)
    for (uint32_t next = btf->buckets[hash & btf->bucket_mask]; next;
         next = btf->next[next - 1]) {
      struct btf_raw raw;
      btf_find_raw(btf, btf->start + next - 1, &raw);
      if (kinds >> btf_kind(&raw) & 1 &&
          strcmp(btf_string(btf, raw.name), name) == 0) {
        *id = btf->start + next - 1;
        return KVMGDB_OK;
      }
    }
  return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, 0);
}
