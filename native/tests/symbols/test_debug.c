/* Files for debuggers: made of small tables, of damaged ones, and of noise. */
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include <kvmgdb/symbols.h>

#include "../guest.h"
#include "../harness.h"
#include "../orc_entry.h"
#include "dwarf_walk.h"

static void destroy_debug(struct kvmgdb_debug **debug) {
  kvmgdb_debug_destroy(*debug);
}
static void destroy_btf(struct kvmgdb_btf **btf) { kvmgdb_btf_destroy(*btf); }
static void destroy_symbols(struct kvmgdb_symbols **symbols) {
  kvmgdb_symbols_destroy(*symbols);
}
static void destroy_unwinder(struct kvmgdb_unwinder **unwinder) {
  kvmgdb_unwinder_destroy(*unwinder);
}
#define DEBUG __attribute__((cleanup(destroy_debug))) struct kvmgdb_debug
#define BTF __attribute__((cleanup(destroy_btf))) struct kvmgdb_btf
#define SYMBOLS __attribute__((cleanup(destroy_symbols))) struct kvmgdb_symbols
#define UNWINDER                                                               \
  __attribute__((cleanup(destroy_unwinder))) struct kvmgdb_unwinder

#define TEXT UINT64_C(0xffffffff81000000)
#define DATA (TEXT + 0x1000)
#define IPS UINT64_C(0xffffffff82000000)

static const struct kvmgdb_debug_area areas[] = {
    {.start = TEXT, .end = TEXT + 0x1000, .executable = 1},
    {.start = DATA, .end = DATA + 0x1000},
};

static struct kvmgdb_debug *new_debug(void) {
  struct kvmgdb_debug *debug = NULL;
  CHECK_EQUAL(kvmgdb_debug_create(areas, 2, &debug, NULL), KVMGDB_OK);
  return debug;
}

/* ---- tables to make files of -----------------------------------------------
 */

#define INFO(kind, count) ((uint32_t)KVMGDB_BTF_##kind << 24 | (count))

static const char names[] = "\0int\0task\0next\0read\0file\0rq\0.data..percpu";
enum {
  N_INT = 1,
  N_TASK = 5,
  N_NEXT = 10,
  N_READ = 15,
  N_FILE = 20,
  N_RQ = 25,
  N_PERCPU = 28
};

static const uint32_t types[] = {
    N_INT,      INFO(INT, 0),
    4,          1u << 24 | 32, /* 1 */
    N_TASK,     INFO(STRUCT, 2),
    16, /* 2 */
    N_NEXT,     3,
    0, /* */
    N_FILE,     1,
    64, /* */
    0,          INFO(PTR, 0),
    2, /* 3 */
    0,          INFO(FUNC_PROTO, 2),
    1, /* 4 */
    N_FILE,     3,
    0,          0, /* variadic */
    N_READ,     INFO(FUNC, 1),
    4, /* 5 */
    N_RQ,       INFO(VAR, 0),
    2,          1, /* 6 */
    N_PERCPU,   INFO(DATASEC, 1),
    0x100, /* 7 */
    6,          0x40,
    16, /* */
    N_NEXT,     INFO(TYPEDEF, 0),
    9, /* 8 */
    0,          INFO(PTR, 0),
    8, /* 9: of itself */
    0,          INFO(CONST, 0),
    99, /* 10: of nothing */
    N_FILE,     INFO(TYPEDEF, 0),
    10, /* 11 */
    N_RQ,       INFO(STRUCT, 1),
    UINT32_MAX, /* 12 */
    N_NEXT,     8,
    0,
};

struct blob {
  uint8_t bytes[1024];
  size_t length;
};

static struct blob make_btf(const void *body, size_t body_length) {
  uint32_t header[6] = {
      0xeb9f | 1u << 16,     24,           0, (uint32_t)body_length,
      (uint32_t)body_length, sizeof(names)};
  struct blob blob = {.length = sizeof(header) + body_length + sizeof(names)};
  memcpy(blob.bytes, header, sizeof(header));
  memcpy(blob.bytes + sizeof(header), body, body_length);
  memcpy(blob.bytes + sizeof(header) + body_length, names, sizeof(names));
  return blob;
}

static struct kvmgdb_symbols *make_symbols(void) {
  static const char strings[] = "\0read\0other\0cpu\0twice\0data";
  const Elf64_Sym table[] = {
      {.st_name = 1, .st_shndx = 1, .st_value = TEXT + 0x100},
      {.st_name = 6, .st_shndx = 1, .st_value = TEXT + 0x140},
      {.st_name = 12, .st_shndx = 1, .st_value = 0x40},
      {.st_name = 16, .st_shndx = 1, .st_value = TEXT + 0x180},
      {.st_name = 16, .st_shndx = 1, .st_value = TEXT + 0x1c0},
      {.st_name = 22, .st_shndx = 1, .st_value = DATA + 8}};
  struct kvmgdb_symbols *symbols = NULL;
  CHECK_EQUAL(kvmgdb_symbols_from_elf(table, 6, strings, sizeof(strings),
                                      "TtAttW", &symbols, NULL),
              KVMGDB_OK);
  return symbols;
}

static const struct kvmgdb_orc_layout layout = {
    ORC_LAYOUT, .registers = KVMGDB_ORC_REGISTERS_SP3};

static void add_rules(struct kvmgdb_unwinder *unwinder, const uint32_t *places,
                      const struct raw_entry *entries, size_t count) {
  int32_t ips[64];
  struct kvmgdb_orc_layout copy = layout;
  for (size_t i = 0; i < count; i++)
    ips[i] = (int32_t)(TEXT + places[i] - (IPS + 4 * i));
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT, TEXT + 0x1000, IPS, ips,
                                  entries, count, &copy, NULL),
              KVMGDB_OK);
}

static const struct kvmgdb_debug_percpu percpu = {
    .table = DATA + 0x100, .start = 0, .cpus = 2};

/* ---- symbols ---------------------------------------------------------------
 */

TEST(debug, symbol_table) {
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  uint32_t locals;
  size_t length, strings_length;
  CHECK_EQUAL(kvmgdb_debug_add_symbols(debug, symbols, &locals, NULL),
              KVMGDB_OK);
  const Elf64_Sym *table =
      kvmgdb_debug_section(debug, KVMGDB_DEBUG_SYMTAB, &length);
  const char *strings =
      kvmgdb_debug_section(debug, KVMGDB_DEBUG_STRTAB, &strings_length);
  CHECK_EQUAL(length, 7 * sizeof(*table));
  CHECK_EQUAL(locals, 4);
  for (size_t i = 1; i < 7; i++) {
    int binding = ELF64_ST_BIND(table[i].st_info);
    CHECK(table[i].st_name < strings_length);
    CHECK((binding == STB_LOCAL) == (i < locals));
    const char *name = strings + table[i].st_name;
    if (strcmp(name, "read") == 0) {
      CHECK_EQUAL(table[i].st_size, 0x40);
      CHECK_EQUAL(ELF64_ST_TYPE(table[i].st_info), STT_FUNC);
      CHECK_EQUAL(table[i].st_shndx, 1);
    } else if (strcmp(name, "cpu") == 0) {
      CHECK_EQUAL(table[i].st_shndx, SHN_ABS);
    } else if (strcmp(name, "data") == 0) {
      CHECK_EQUAL(binding, STB_WEAK);
      CHECK_EQUAL(table[i].st_size, 0x1000 - 8);
      CHECK_EQUAL(table[i].st_shndx, 2);
    }
  }
}

TEST(debug, areas_are_checked) {
  struct kvmgdb_debug *debug = NULL;
  const struct kvmgdb_debug_area overlap[] = {{.start = 0, .end = 16},
                                              {.start = 15, .end = 20}};
  const struct kvmgdb_debug_area empty = {.start = 16, .end = 16};
  CHECK_EQUAL(kvmgdb_debug_create(overlap, 2, &debug, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_debug_create(&empty, 1, &debug, NULL), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_debug_create(overlap, 65, &debug, NULL),
              KVMGDB_ERR_INVALID);
  CHECK(debug == NULL);
}

/* ---- types -----------------------------------------------------------------
 */

static enum kvmgdb_status add_types(struct kvmgdb_debug *debug,
                                    const struct kvmgdb_btf *btf,
                                    const struct kvmgdb_symbols *symbols) {
  const struct kvmgdb_debug_variable variables[] = {
      {.name = "plain", .address = DATA, .type = 2},
      {.name = "pointer", .address = DATA, .type = 0, .is_pointer = 1},
      {.name = "pointers",
       .address = DATA,
       .type = 1,
       .is_pointer = 1,
       .is_array = 1,
       .elements = 7},
      {.name = "open", .address = DATA, .type = 2, .is_array = 1},
      {.name = "damaged", .address = DATA, .type = 9},
      {.name = "none", .address = DATA, .type = 12345},
  };
  return kvmgdb_debug_add_types(debug, btf, symbols, "test", "unit", variables,
                                sizeof(variables) / sizeof(variables[0]),
                                &percpu, 1, NULL);
}

TEST(debug, types_and_functions) {
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  BTF *btf = NULL;
  struct blob blob = make_btf(types, sizeof(types));
  CHECK_EQUAL(kvmgdb_btf_create(blob.bytes, blob.length, NULL, &btf, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(add_types(debug, btf, symbols), KVMGDB_OK);
  struct walk walk = walk_info(debug);
  /* Types, variables, functions. */
  CHECK_EQUAL(walk.units, 3);
  CHECK_EQUAL(walk.functions, 1);
  /* What refers to itself or to nothing: in the types' unit, where the
   * variables need it no more. */
  CHECK_EQUAL(walk.damaged, 1);
}

TEST(debug, types_of_a_module) {
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  BTF *base = NULL, *btf = NULL;
  struct blob blob = make_btf(types, sizeof(types));
  CHECK_EQUAL(kvmgdb_btf_create(blob.bytes, blob.length, NULL, &base, NULL),
              KVMGDB_OK);
  /* A function of the base's prototype, and a type of the base's name. */
  const uint32_t own[] = {N_READ, INFO(FUNC, 1), 4, N_TASK, INFO(STRUCT, 0), 4};
  struct blob split = make_btf(own, sizeof(own));
  CHECK_EQUAL(kvmgdb_btf_create(split.bytes, split.length, base, &btf, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(add_types(debug, btf, symbols), KVMGDB_OK);
  CHECK_EQUAL(walk_info(debug).functions, 1);
}

/* One byte of all is another: what can be read still holds together. */
TEST(debug, damaged_types) {
  SYMBOLS *symbols = make_symbols();
  uint64_t state = 88172645463325252u;
  size_t made = 0;
  for (int round = 0; round < 20000; round++) {
    struct blob blob = make_btf(types, sizeof(types));
    int flips = 1 + (int)(random_next(&state) % 4);
    for (int i = 0; i < flips; i++)
      blob.bytes[24 + random_next(&state) % (blob.length - 24)] ^=
          (uint8_t)random_next(&state);
    DEBUG *debug = new_debug();
    BTF *btf = NULL;
    if (kvmgdb_btf_create(blob.bytes, blob.length, NULL, &btf, NULL) !=
        KVMGDB_OK)
      continue;
    if (add_types(debug, btf, symbols) == KVMGDB_OK) {
      walk_info(debug);
      made++;
    }
  }
  CHECK(made > 1000);
}

/* Nested anonymous structures, each in each: no more than fits is written. */
TEST(debug, types_that_multiply_are_bounded) {
  enum { LEVELS = 60, WORDS = 3 + 3 * 2 };
  static uint32_t body[1 + LEVELS * WORDS];
  uint8_t *bytes = calloc(1, 24 + sizeof(body) + sizeof(names));
  for (uint32_t level = 0; level < LEVELS; level++) {
    uint32_t *type = body + level * WORDS;
    type[1] = INFO(STRUCT, 2);
    type[2] = 8;
    type[4] = type[7] = level + 1 < LEVELS ? level + 2 : 1;
  }
  uint32_t header[6] = {0xeb9f | 1u << 16,  24,           0, LEVELS * WORDS * 4,
                        LEVELS * WORDS * 4, sizeof(names)};
  memcpy(bytes, header, 24);
  memcpy(bytes + 24, body, LEVELS * WORDS * 4);
  memcpy(bytes + 24 + LEVELS * WORDS * 4, names, sizeof(names));
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  BTF *btf = NULL;
  CHECK_EQUAL(kvmgdb_btf_create(bytes, 24 + LEVELS * WORDS * 4 + sizeof(names),
                                NULL, &btf, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(add_types(debug, btf, symbols), KVMGDB_OK);
  CHECK(walk_info(debug).entries < 1000);
  free(bytes);
}

/* ---- frames ----------------------------------------------------------------
 */

#define BITS(sp, bp, type) (uint16_t)((sp) | (bp) << 4 | (type) << 8)
#define SIGNAL (1u << 11)

TEST(debug, frames) {
  static const uint32_t places[] = {0x100, 0x104, 0x140, 0x150, 0x180, 0x190};
  static const struct raw_entry entries[] = {
      {8, 0, BITS(3, 0, 2)},          {16, -16, BITS(3, 8, 2)},
      {0, 0, BITS(3, 0, 3) | SIGNAL}, {8, 0, BITS(3, 0, 4) | SIGNAL},
      {0, 0, BITS(9, 0, 2)},          {0, 0, BITS(0, 0, 1)}};
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  UNWINDER *unwinder = NULL;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  add_rules(unwinder, places, entries, 6);
  CHECK_EQUAL(
      kvmgdb_debug_add_frames(debug, unwinder, symbols, NULL, 0, 1, NULL),
      KVMGDB_OK);
  /* User mode; before the first rule; `read`; `other` in two classes; the code
   * that switches stacks, its end, and the other symbol of that name. */
  CHECK_EQUAL(walk_frames(debug), 8);
  uint32_t locals;
  size_t length;
  CHECK_EQUAL(kvmgdb_debug_add_symbols(debug, symbols, &locals, NULL),
              KVMGDB_OK);
  const char *strings =
      kvmgdb_debug_section(debug, KVMGDB_DEBUG_STRTAB, &length);
  CHECK(memmem(strings, length, "__morestack", 12) != NULL);
  /* Its function has its name without any BTF. */
  BTF *btf = NULL;
  struct blob blob = make_btf(types, 0);
  CHECK_EQUAL(kvmgdb_btf_create(blob.bytes, blob.length, NULL, &btf, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_debug_add_types(debug, btf, symbols, "test", "unit", NULL,
                                     0, NULL, 0, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(walk_info(debug).functions, 1);
}

TEST(debug, rules_are_checked) {
  DEBUG *debug = new_debug();
  SYMBOLS *symbols = make_symbols();
  UNWINDER *unwinder = NULL;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  const struct kvmgdb_debug_rule rules[] = {{.start = TEXT, .end = TEXT + 8},
                                            {.start = TEXT, .end = TEXT + 9}};
  CHECK_EQUAL(
      kvmgdb_debug_add_frames(debug, unwinder, symbols, rules, 2, 0, NULL),
      KVMGDB_ERR_INVALID);
  CHECK_EQUAL(
      kvmgdb_debug_add_frames(debug, unwinder, symbols, rules, 1, 0, NULL),
      KVMGDB_OK);
}

TEST(debug, noise_as_unwind_table) {
  SYMBOLS *symbols = make_symbols();
  uint64_t state = 521288629521288629u;
  for (int round = 0; round < 5000; round++) {
    DEBUG *debug = new_debug();
    UNWINDER *unwinder = NULL;
    uint32_t places[64];
    struct raw_entry entries[64];
    struct kvmgdb_debug_rule rule;
    for (int i = 0; i < 64; i++) {
      uint64_t noise = random_next(&state);
      places[i] = (uint32_t)(random_next(&state) % 0x1000);
      memcpy(&entries[i], &noise, sizeof(entries[i]));
    }
    rule.start = TEXT + random_next(&state) % 0x800;
    rule.end = rule.start + 1 + random_next(&state) % 0x100;
    rule.cfa_offset = (int16_t)random_next(&state);
    rule.kind = (enum kvmgdb_debug_rule_kind)(random_next(&state) %
                                              (KVMGDB_RULE_IRET + 1));
    CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
    add_rules(unwinder, places, entries, 64);
    CHECK_EQUAL(
        kvmgdb_debug_add_frames(debug, unwinder, symbols, &rule, 1, 1, NULL),
        KVMGDB_OK);
    CHECK(walk_frames(debug) >= 6);
  }
}
