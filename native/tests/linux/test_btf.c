/* BTF: a table with every kind, a split one, and what is damaged. */
#include <stdlib.h>
#include <string.h>

#include <kvmgdb/linux.h>

#include "../guest.h"
#include "../harness.h"

static void destroy(struct kvmgdb_btf **btf) { kvmgdb_btf_destroy(*btf); }
#define BTF __attribute__((cleanup(destroy))) struct kvmgdb_btf

#define HEADER 24
#define INFO(kind, count) ((uint32_t)KVMGDB_BTF_##kind << 24 | (count))
#define FLAG (UINT32_C(1) << 31)

static const char strings[] = "\0int\0task\0inner\0bits\0a\0b\0c\0ENUM\0func";
enum {
  S_INT = 1,
  S_TASK = 5,
  S_INNER = 10,
  S_BITS = 16,
  S_A = 21,
  S_B = 23,
  S_C = 25,
  S_ENUM = 27,
  S_FUNC = 32
};

/* Each line a type; the comment is its ID. */
static const uint32_t types[] = {
    S_INT,
    INFO(INT, 0),
    4,
    1u << 24 | 32, /* 1 */
    0,
    INFO(PTR, 0),
    1, /* 2 */
    0,
    INFO(ARRAY, 0),
    0,
    1,
    1,
    7, /* 3 */
    0,
    INFO(STRUCT, 2),
    8,
    S_B,
    1,
    0,
    S_C,
    3,
    32, /* 4, anonymous */
    S_TASK,
    INFO(STRUCT, 3) | FLAG,
    40, /* 5 */
    S_A,
    1,
    0,
    0,
    4,
    64,
    S_BITS,
    1,
    5u << 24 | 131,
    S_INNER,
    INFO(TYPEDEF, 0),
    7, /* 6 */
    0,
    INFO(CONST, 0),
    5, /* 7 */
    0,
    INFO(VOLATILE, 0),
    6, /* 8 */
    S_ENUM,
    INFO(ENUM, 2),
    4,
    S_A,
    1,
    S_B,
    UINT32_MAX, /* 9 */
    S_FUNC,
    INFO(FUNC_PROTO, 2),
    1,
    S_A,
    2,
    0,
    0, /* 10 */
    S_FUNC,
    INFO(FUNC, 1),
    10, /* 11 */
    S_A,
    INFO(VAR, 0),
    3,
    1, /* 12 */
    S_B,
    INFO(DATASEC, 1),
    64,
    12,
    16,
    28, /* 13 */
    S_C,
    INFO(FLOAT, 0),
    8, /* 14 */
    S_C,
    INFO(DECL_TAG, 0),
    12,
    UINT32_MAX, /* 15 */
    S_C,
    INFO(TYPE_TAG, 0),
    1, /* 16 */
    S_ENUM,
    INFO(ENUM64, 1) | FLAG,
    8,
    S_C,
    1,
    UINT32_MAX, /* 17 */
    S_C,
    INFO(FWD, 0),
    0, /* 18 */
    0,
    INFO(RESTRICT, 0),
    2, /* 19 */
    S_B,
    INFO(TYPEDEF, 0),
    20, /* 20: itself */
    S_C,
    INFO(STRUCT, 2),
    8,
    0,
    21,
    0,
    0,
    21,
    0, /* 21: holds itself */
    0,
    INFO(ARRAY, 0),
    0,
    22,
    1,
    UINT32_MAX, /* 22: of itself */
};
enum { TYPES = 22 };

struct table {
  uint8_t bytes[2048];
  size_t length;
};

static struct table make(const uint32_t *body, size_t body_length,
                         const char *text, size_t text_length) {
  struct table table = {.length = HEADER + body_length + text_length};
  uint32_t header[HEADER / 4] = {0xeb9f | 1u << 16,
                                 HEADER,
                                 0,
                                 (uint32_t)body_length,
                                 (uint32_t)body_length,
                                 (uint32_t)text_length};
  memcpy(table.bytes, header, HEADER);
  memcpy(table.bytes + HEADER, body, body_length);
  memcpy(table.bytes + HEADER + body_length, text, text_length);
  return table;
}

static struct table whole(void) {
  return make(types, sizeof(types), strings, sizeof(strings));
}

static enum kvmgdb_status create(const struct table *table,
                                 const struct kvmgdb_btf *base,
                                 struct kvmgdb_btf **out) {
  uint8_t *copy = malloc(table->length + !table->length);
  memcpy(copy, table->bytes, table->length);
  enum kvmgdb_status status =
      kvmgdb_btf_create(copy, table->length, base, out, NULL);
  free(copy);
  return status;
}

TEST(btf, every_kind) {
  BTF *btf = NULL;
  struct table table = whole();
  CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_btf_start(btf), 1);
  CHECK_EQUAL(kvmgdb_btf_end(btf), TYPES + 1);
  static const int kinds[TYPES + 1] = {0,  1,  2,  3,  4,  4,  8,  10,
                                       9,  6,  13, 12, 14, 15, 16, 17,
                                       18, 19, 7,  11, 8,  4,  3};
  struct kvmgdb_btf_type type;
  for (uint32_t id = 0; id <= TYPES; id++) {
    CHECK_EQUAL(kvmgdb_btf_type(btf, id, &type, NULL), KVMGDB_OK);
    CHECK_EQUAL(type.kind, kinds[id]);
  }
  CHECK_EQUAL(kvmgdb_btf_type(btf, TYPES + 1, &type, NULL),
              KVMGDB_ERR_NOT_FOUND);
  CHECK_EQUAL(kvmgdb_btf_type(btf, 1, &type, NULL), KVMGDB_OK);
  CHECK(strcmp(type.name, "int") == 0 && type.size == 4 && type.bits == 32 &&
        type.is_signed);
}

TEST(btf, members) {
  BTF *btf = NULL;
  struct table table = whole();
  struct kvmgdb_btf_member member;
  uint64_t size;
  CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_OK);
  uint32_t id = 0;
  CHECK_EQUAL(kvmgdb_btf_find(btf, "task", 1u << KVMGDB_BTF_STRUCT, &id, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(id, 5);
  CHECK_EQUAL(kvmgdb_btf_find_member(btf, id, "c", &member, NULL), KVMGDB_OK);
  CHECK_EQUAL(member.bit_offset, 64 + 32);
  CHECK_EQUAL(member.type, 3);
  CHECK_EQUAL(kvmgdb_btf_find_member(btf, 8, "bits", &member, NULL), KVMGDB_OK);
  CHECK_EQUAL(member.bit_offset, 131);
  CHECK_EQUAL(member.bits, 5);
  CHECK_EQUAL(kvmgdb_btf_find_member(btf, id, "none", &member, NULL),
              KVMGDB_ERR_NOT_FOUND);
  CHECK_EQUAL(kvmgdb_btf_size(btf, 3, &size, NULL), KVMGDB_OK);
  CHECK_EQUAL(size, 28);
  CHECK_EQUAL(kvmgdb_btf_size(btf, 8, &size, NULL), KVMGDB_OK);
  CHECK_EQUAL(size, 40);
  CHECK_EQUAL(kvmgdb_btf_size(btf, 12, &size, NULL), KVMGDB_OK);
  CHECK_EQUAL(size, 28);
  CHECK_EQUAL(kvmgdb_btf_member(btf, 13, 0, &member, NULL), KVMGDB_OK);
  CHECK_EQUAL(member.bit_offset, 128);
  CHECK_EQUAL(member.size, 28);
  CHECK_EQUAL(kvmgdb_btf_member(btf, 1, 0, &member, NULL), KVMGDB_ERR_INVALID);
}

TEST(btf, values) {
  BTF *btf = NULL;
  struct table table = whole();
  struct kvmgdb_btf_value value;
  CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_btf_value(btf, 9, 1, &value, NULL), KVMGDB_OK);
  CHECK(strcmp(value.name, "b") == 0 && value.value == -1);
  CHECK_EQUAL(kvmgdb_btf_value(btf, 17, 0, &value, NULL), KVMGDB_OK);
  CHECK_EQUAL(value.value, 1 | UINT64_C(0xffffffff) << 32);
  CHECK_EQUAL(kvmgdb_btf_value(btf, 17, 1, &value, NULL), KVMGDB_ERR_NOT_FOUND);
}

TEST(btf, types_without_end) {
  BTF *btf = NULL;
  struct table table = whole();
  struct kvmgdb_btf_type type;
  struct kvmgdb_btf_member member;
  uint64_t size;
  CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_btf_strip(btf, 20, &type, NULL), KVMGDB_ERR_MALFORMED);
  CHECK_EQUAL(kvmgdb_btf_size(btf, 22, &size, NULL), KVMGDB_ERR_MALFORMED);
  CHECK_EQUAL(kvmgdb_btf_size(btf, 18, &size, NULL), KVMGDB_ERR_MALFORMED);
  CHECK_EQUAL(kvmgdb_btf_find_member(btf, 21, "x", &member, NULL),
              KVMGDB_ERR_NOT_FOUND);
}

/* Of a newer kernel: what stands before it is there, and no module's types. */
TEST(btf, unknown_kind) {
  enum { KVMGDB_BTF_UNKNOWN = 27 };
  const uint32_t body[] = {S_TASK, INFO(STRUCT, 0),  8, 0, INFO(UNKNOWN, 3), 1,
                           S_A,    INFO(TYPEDEF, 0), 1};
  BTF *btf = NULL, *split = NULL;
  struct table table = make(body, sizeof(body), strings, sizeof(strings));
  uint32_t id;
  CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_btf_unknown_kind(btf), KVMGDB_BTF_UNKNOWN);
  CHECK_EQUAL(kvmgdb_btf_end(btf), 2);
  CHECK_EQUAL(kvmgdb_btf_find(btf, "task", 1u << KVMGDB_BTF_STRUCT, &id, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(create(&table, btf, &split), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_btf_unknown_kind(NULL), 0);
}

TEST(btf, split) {
  const char more[] = "\0module_struct";
  uint32_t base_strings = sizeof(strings);
  const uint32_t body[] = {
      base_strings + 1, INFO(STRUCT, 1),  4,        S_A, 1, 0,
      S_TASK,           INFO(TYPEDEF, 0), TYPES + 1};
  BTF *base = NULL, *split = NULL;
  struct table base_table = whole();
  struct table table = make(body, sizeof(body), more, sizeof(more));
  CHECK_EQUAL(create(&base_table, NULL, &base), KVMGDB_OK);
  CHECK_EQUAL(create(&table, base, &split), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_btf_start(split), TYPES + 1);
  struct kvmgdb_btf_type type;
  uint32_t id;
  CHECK_EQUAL(kvmgdb_btf_find(split, "module_struct", 1u << KVMGDB_BTF_STRUCT,
                              &id, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(id, TYPES + 1);
  CHECK_EQUAL(kvmgdb_btf_strip(split, TYPES + 2, &type, NULL), KVMGDB_OK);
  CHECK(strcmp(type.name, "module_struct") == 0);
  CHECK_EQUAL(kvmgdb_btf_find(split, "int", 1u << KVMGDB_BTF_INT, &id, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(id, 1);
  BTF *third = NULL;
  CHECK_EQUAL(create(&table, split, &third), KVMGDB_ERR_INVALID);
}

static void read_everything(const struct kvmgdb_btf *btf) {
  for (uint32_t id = 0; id < kvmgdb_btf_end(btf); id++) {
    struct kvmgdb_btf_type type;
    struct kvmgdb_btf_member member;
    struct kvmgdb_btf_value value;
    uint64_t size;
    uint32_t found;
    CHECK_EQUAL(kvmgdb_btf_type(btf, id, &type, NULL), KVMGDB_OK);
    for (uint32_t i = 0; i < type.count && i < 100; i++) {
      if (kvmgdb_btf_member(btf, id, i, &member, NULL) == KVMGDB_OK)
        CHECK(strlen(member.name) < sizeof(strings));
      if (kvmgdb_btf_value(btf, id, i, &value, NULL) == KVMGDB_OK)
        CHECK(strlen(value.name) < sizeof(strings));
    }
    kvmgdb_btf_size(btf, id, &size, NULL);
    kvmgdb_btf_find_member(btf, id, "c", &member, NULL);
    kvmgdb_btf_find(btf, type.name, UINT32_MAX, &found, NULL);
  }
}

TEST(btf, truncated) {
  for (size_t length = 0; length < whole().length; length++) {
    BTF *btf = NULL;
    struct table table = whole();
    table.length = length;
    CHECK_EQUAL(create(&table, NULL, &btf), KVMGDB_ERR_MALFORMED);
  }
}

TEST(btf, damaged) {
  uint64_t state = 362436069362436069u;
  for (int round = 0; round < 4000; round++) {
    BTF *btf = NULL;
    struct table table = whole();
    for (uint64_t i = 0; i <= random_next(&state) % 4; i++)
      table.bytes[random_next(&state) % table.length] =
          (uint8_t)random_next(&state);
    if (create(&table, NULL, &btf) == KVMGDB_OK)
      read_everything(btf);
  }
}
