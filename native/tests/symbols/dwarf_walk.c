#include "dwarf_walk.h"

#include <stdlib.h>
#include <string.h>

#include "../harness.h"

#define MAX_CODES 128
#define MAX_ATTRIBUTES 16

enum {
  TAG_SUBPROGRAM = 0x2e,
  TAG_UNSPECIFIED_TYPE = 0x3b,
  FORM_ADDR = 0x01,
  FORM_DATA4 = 0x06,
  FORM_DATA1 = 0x0b,
  FORM_SDATA = 0x0d,
  FORM_STRP = 0x0e,
  FORM_UDATA = 0x0f,
  FORM_REF4 = 0x13,
  FORM_SEC_OFFSET = 0x17,
  FORM_EXPRLOC = 0x18,
  FORM_FLAG_PRESENT = 0x19,
};

struct bytes {
  const uint8_t *data;
  size_t at;
  size_t end;
};

struct abbreviation {
  uint64_t tag;
  int has_children;
  size_t count;
  uint64_t forms[MAX_ATTRIBUTES];
};

struct reader {
  struct bytes info;
  struct bytes strings;
  struct bytes lists;
  struct abbreviation table[MAX_CODES];
  uint8_t *starts; /* by place in .debug_info: whether an entry is there */
  size_t *references;
  size_t reference_count;
  struct walk walk;
};

static struct bytes section(const struct kvmgdb_debug *debug,
                            enum kvmgdb_debug_section which) {
  struct bytes bytes = {0};
  bytes.data = kvmgdb_debug_section(debug, which, &bytes.end);
  return bytes;
}

static uint64_t take(struct bytes *bytes, size_t size) {
  uint64_t value = 0;
  CHECK(size <= bytes->end - bytes->at);
  memcpy(&value, bytes->data + bytes->at, size);
  bytes->at += size;
  return value;
}

static uint64_t take_uleb(struct bytes *bytes) {
  uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    uint64_t byte = take(bytes, 1);
    if (shift < 64)
      value |= (byte & 0x7f) << shift;
    if (!(byte & 0x80))
      return value;
  }
}

static void read_abbreviations(struct reader *reader, struct bytes bytes) {
  for (;;) {
    uint64_t code = take_uleb(&bytes);
    if (code == 0)
      break;
    CHECK(code < MAX_CODES);
    struct abbreviation *out = &reader->table[code];
    out->tag = take_uleb(&bytes);
    out->has_children = (int)take(&bytes, 1);
    for (;;) {
      uint64_t attribute = take_uleb(&bytes), form = take_uleb(&bytes);
      if (attribute == 0)
        break;
      CHECK(out->count < MAX_ATTRIBUTES);
      out->forms[out->count++] = form;
    }
  }
  CHECK_EQUAL(bytes.at, bytes.end);
}

static void check_string(const struct bytes *strings, uint64_t place) {
  CHECK(place < strings->end);
  CHECK(memchr(strings->data + place, 0, strings->end - place) != NULL);
}

static void take_form(struct reader *reader, uint64_t form, size_t unit) {
  struct bytes *info = &reader->info;
  switch (form) {
  case FORM_ADDR:
    take(info, 8);
    break;
  case FORM_DATA4:
    take(info, 4);
    break;
  case FORM_DATA1:
    take(info, 1);
    break;
  case FORM_SDATA:
  case FORM_UDATA:
    take_uleb(info);
    break;
  case FORM_STRP:
    check_string(&reader->strings, take(info, 4));
    break;
  case FORM_REF4:
    reader->references[reader->reference_count++] = unit + take(info, 4);
    break;
  case FORM_SEC_OFFSET:
    CHECK(take(info, 4) < reader->lists.end);
    break;
  case FORM_EXPRLOC: {
    uint64_t length = take_uleb(info);
    CHECK(length <= info->end - info->at);
    info->at += length;
    break;
  }
  default:
    CHECK_EQUAL(form, FORM_FLAG_PRESENT);
    break;
  }
}

static void read_entries(struct reader *reader, size_t unit, size_t end) {
  size_t depth = 0, first_reference = reader->reference_count;
  do {
    size_t start = reader->info.at;
    uint64_t code = take_uleb(&reader->info);
    if (code == 0) {
      CHECK(depth > 0);
      depth--;
      continue;
    }
    CHECK(code < MAX_CODES && reader->table[code].tag);
    const struct abbreviation *shape = &reader->table[code];
    reader->starts[start] = 1;
    reader->walk.entries++;
    reader->walk.functions += shape->tag == TAG_SUBPROGRAM;
    reader->walk.damaged += shape->tag == TAG_UNSPECIFIED_TYPE;
    for (size_t i = 0; i < shape->count; i++)
      take_form(reader, shape->forms[i], unit);
    depth += shape->has_children != 0;
  } while (depth > 0);
  CHECK_EQUAL(reader->info.at, end);
  for (size_t i = first_reference; i < reader->reference_count; i++) {
    size_t target = reader->references[i];
    CHECK(target > unit && target < end && reader->starts[target]);
  }
}

struct walk walk_info(const struct kvmgdb_debug *debug) {
  static struct reader reader;
  reader = (struct reader){
      .info = section(debug, KVMGDB_DEBUG_INFO),
      .strings = section(debug, KVMGDB_DEBUG_STR),
      .lists = section(debug, KVMGDB_DEBUG_LOCLISTS),
  };
  if (!reader.info.end)
    return reader.walk;
  reader.starts = calloc(reader.info.end, 1);
  reader.references = calloc(reader.info.end, sizeof(*reader.references));
  read_abbreviations(&reader, section(debug, KVMGDB_DEBUG_ABBREV));
  while (reader.info.at < reader.info.end) {
    size_t unit = reader.info.at;
    uint64_t length = take(&reader.info, 4);
    CHECK(length <= reader.info.end - reader.info.at);
    size_t end = reader.info.at + length;
    uint64_t version = take(&reader.info, 2);
    CHECK(version == 4 || version == 5);
    take(&reader.info, version == 5 ? 6 : 5);
    read_entries(&reader, unit, end);
    reader.walk.units++;
  }
  free(reader.starts);
  free(reader.references);
  return reader.walk;
}

size_t walk_frames(const struct kvmgdb_debug *debug) {
  struct bytes frames = section(debug, KVMGDB_DEBUG_FRAME);
  size_t count = 0;
  while (frames.at < frames.end) {
    uint64_t length = take(&frames, 4);
    CHECK(length >= 4 && length <= frames.end - frames.at && length % 8 == 4);
    size_t end = frames.at + length;
    uint64_t cie = take(&frames, 4);
    if (cie != UINT32_MAX) {
      CHECK(cie < frames.at);
      take(&frames, 8);
      CHECK(take(&frames, 8) > 0);
      count++;
    }
    frames.at = end;
  }
  return count;
}
