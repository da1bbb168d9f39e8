/* Unwinding copied stacks by tables made here, in both layouts. */
#include <stdlib.h>
#include <string.h>

#include <kvmgdb/linux.h>

#include "../guest.h"
#include "../harness.h"
#include "../orc_entry.h"

static void destroy(struct kvmgdb_unwinder **unwinder) {
  kvmgdb_unwinder_destroy(*unwinder);
}
#define UNWINDER __attribute__((cleanup(destroy))) struct kvmgdb_unwinder

#define TEXT UINT64_C(0xffffffff81000000)
#define IPS UINT64_C(0xffffffff82000000)
#define STACK UINT64_C(0xffffc90000000000)
#define WORDS 128

/* Functions of the table, 0x100 bytes each. */
enum { LEAF, MIDDLE, BP_BASED, ENTRY, INTERRUPT, SWITCHED, LAST, NO_RULE };
#define FUNCTION(number) (TEXT + 0x100 * (number))

/* Until 6.3, and since 7.1. */
static const struct kvmgdb_orc_layout old_layout = {
    .entry_size = 6,
    .sp_offset = {0, 16},
    .bp_offset = {16, 16},
    .sp_reg = {32, 4},
    .bp_reg = {36, 4},
    .type = {40, 2},
    .end = {42, 1},
    .types = KVMGDB_ORC_TYPES_CALL_FIRST};
static const struct kvmgdb_orc_layout new_layout = {ORC_LAYOUT};

#define BITS(sp, bp, type) (uint16_t)((sp) | (bp) << 4 | (type) << 8)
#define SIGNAL (1u << 11)
#define OLD_END (1u << 10)

static const struct raw_entry old_entries[] = {
    {8, 0, BITS(5, 0, 0)},           {32, -16, BITS(5, 1, 0)},
    {16, -16, BITS(4, 1, 0)},        {0, 0, BITS(5, 0, 1)},
    {0, 0, BITS(5, 0, 2)},           {8, 0, BITS(9, 0, 0)},
    {0, 0, BITS(0, 0, 0) | OLD_END}, {0, 0, 0}};
static const struct raw_entry new_entries[] = {
    {8, 0, BITS(3, 0, 2)},          {32, -16, BITS(3, 8, 2)},
    {16, -16, BITS(4, 8, 2)},       {0, 0, BITS(3, 0, 3) | SIGNAL},
    {0, 0, BITS(3, 0, 4) | SIGNAL}, {8, 0, BITS(9, 0, 2)},
    {0, 0, BITS(0, 0, 1)},          {0, 0, 0}};
#define ENTRIES (sizeof(old_entries) / sizeof(old_entries[0]))

static void add_table(struct kvmgdb_unwinder *unwinder,
                      const struct kvmgdb_orc_layout *layout,
                      const struct raw_entry *entries, int expected) {
  /* Written in descending order: it must be put right. */
  int32_t ips[ENTRIES];
  struct raw_entry reversed[ENTRIES];
  for (size_t i = 0; i < ENTRIES; i++) {
    size_t function = ENTRIES - 1 - i;
    ips[i] = (int32_t)(FUNCTION(function) - (IPS + 4 * i));
    reversed[i] = entries[function];
  }
  struct kvmgdb_orc_layout copy = *layout;
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT, TEXT + 0x100 * ENTRIES, IPS,
                                  ips, reversed, ENTRIES, &copy, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(copy.registers, expected);
}

static void add_each(struct kvmgdb_unwinder *unwinder, int which) {
  if (which)
    add_table(unwinder, &new_layout, new_entries, KVMGDB_ORC_REGISTERS_SP3);
  else
    add_table(unwinder, &old_layout, old_entries, KVMGDB_ORC_REGISTERS_SP5);
}

struct scene {
  uint64_t task[WORDS];
  uint64_t irq[WORDS]; /* above the task's stack in memory */
  struct kvmgdb_stack stacks[2];
  struct kvmgdb_frame frames[32];
  struct kvmgdb_unwind_result result;
};
#define IRQ_STACK (STACK + 0x100000)

static void scene_reset(struct scene *scene) {
  memset(scene, 0, sizeof(*scene));
  scene->stacks[0] = (struct kvmgdb_stack){STACK, scene->task, WORDS * 8};
  scene->stacks[1] = (struct kvmgdb_stack){IRQ_STACK, scene->irq, WORDS * 8};
}

static void unwind(const struct kvmgdb_unwinder *unwinder, struct scene *scene,
                   uint64_t ip, uint64_t sp, int flags) {
  struct kvmgdb_unwind_registers registers = {
      .ip = ip, .sp = sp, .bp = 0x1234, .known = 7};
  CHECK_EQUAL(kvmgdb_unwind(unwinder, &registers, scene->stacks, 2, flags,
                            scene->frames, 32, &scene->result, NULL),
              KVMGDB_OK);
}

/* leaf <- middle <- function with rbp <- last. */
static void build_calls(struct scene *scene) {
  scene->task[0] = FUNCTION(MIDDLE) + 0x10;
  scene->task[3] = STACK + 8 * 6; /* middle saved rbp */
  scene->task[4] = FUNCTION(BP_BASED) + 0x20;
  scene->task[6] = 0x77; /* rbp of the function before */
  scene->task[7] = FUNCTION(LAST) + 0x30;
}

TEST(unwind, calls) {
  for (int which = 0; which < 2; which++) {
    UNWINDER *unwinder = NULL;
    struct scene scene;
    CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
    add_each(unwinder, which);
    scene_reset(&scene);
    build_calls(&scene);
    unwind(unwinder, &scene, FUNCTION(LEAF), STACK, 0);
    CHECK_EQUAL(scene.result.count, 4);
    CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
    CHECK_EQUAL(scene.frames[0].source, KVMGDB_FRAME_REGISTERS);
    CHECK_EQUAL(scene.frames[0].is_exact, 1);
    CHECK_EQUAL(scene.frames[1].ip, FUNCTION(MIDDLE) + 0x10);
    CHECK_EQUAL(scene.frames[1].source, KVMGDB_FRAME_ORC);
    CHECK_EQUAL(scene.frames[1].is_exact, 0);
    CHECK_EQUAL(scene.frames[1].sp, STACK + 8);
    CHECK_EQUAL(scene.frames[2].ip, FUNCTION(BP_BASED) + 0x20);
    CHECK_EQUAL(scene.frames[2].bp, STACK + 48);
    CHECK_EQUAL(scene.frames[3].bp, 0x77);
    CHECK_EQUAL(scene.frames[3].sp, STACK + 64);
  }
}

/* A handler on the IRQ stack, whose entry saved registers on the task's. */
TEST(unwind, interrupt_of_kernel_code) {
  for (int which = 0; which < 2; which++) {
    UNWINDER *unwinder = NULL;
    struct scene scene;
    CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
    add_each(unwinder, which);
    scene_reset(&scene);
    scene.irq[2] = FUNCTION(SWITCHED) + 0x10;
    scene.irq[3] = STACK + 8 * 8; /* the task's stack pointer */
    scene.task[8] = FUNCTION(ENTRY) + 0x10;
    uint64_t *regs = &scene.task[9];
    regs[4] = 0x99;            /* bp */
    regs[16] = FUNCTION(LEAF); /* ip: at its first instruction */
    regs[17] = 0x10;           /* cs */
    regs[19] = STACK + 8 * 40; /* sp */
    scene.task[40] = FUNCTION(LAST) + 1;
    unwind(unwinder, &scene, FUNCTION(LEAF) + 4, IRQ_STACK + 16, 0);
    CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
    CHECK_EQUAL(scene.result.count, 5);
    CHECK_EQUAL(scene.frames[1].ip, FUNCTION(SWITCHED) + 0x10);
    CHECK_EQUAL(scene.frames[2].ip, FUNCTION(ENTRY) + 0x10);
    CHECK_EQUAL(scene.frames[3].ip, FUNCTION(LEAF));
    CHECK_EQUAL(scene.frames[3].source, KVMGDB_FRAME_ENTRY);
    CHECK_EQUAL(scene.frames[3].is_exact, 1);
    CHECK_EQUAL(scene.frames[3].bp, 0x99);
    CHECK_EQUAL(scene.frames[3].registers, STACK + 8 * 9);
    CHECK_EQUAL(scene.frames[4].ip, FUNCTION(LAST) + 1);
  }
}

TEST(unwind, entry_from_user_mode) {
  for (int which = 0; which < 2; which++) {
    UNWINDER *unwinder = NULL;
    struct scene scene;
    CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
    add_each(unwinder, which);
    scene_reset(&scene);
    scene.task[0] = 0x401000;
    scene.task[1] = 0x33;
    scene.task[3] = 0x7ffff000;
    unwind(unwinder, &scene, FUNCTION(INTERRUPT) + 4, STACK, 0);
    CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_USER);
    CHECK_EQUAL(scene.result.count, 2);
    CHECK_EQUAL(scene.frames[1].source, KVMGDB_FRAME_USER_REGISTERS);
    CHECK_EQUAL(scene.frames[1].ip, 0x401000);
    CHECK_EQUAL(scene.frames[1].sp, 0x7ffff000);
  }
}

/* User frames by frame pointers, up to a null one. */
TEST(unwind, user_frames) {
  UNWINDER *unwinder = NULL;
  struct scene scene;
  uint64_t stack[8] = {0, 0, 0x7000 + 40, 0x402000, 0, 0, 0x403000};
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  scene_reset(&scene);
  scene.stacks[1] = (struct kvmgdb_stack){0x7000, stack, sizeof(stack)};
  struct kvmgdb_unwind_registers registers = {
      .ip = 0x401000, .sp = 0x7000, .bp = 0x7010, .known = 7};
  CHECK_EQUAL(kvmgdb_unwind(unwinder, &registers, scene.stacks, 2,
                            KVMGDB_UNWIND_USER_FRAMES, scene.frames, 32,
                            &scene.result, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(scene.result.count, 3);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
  CHECK_EQUAL(scene.frames[1].ip, 0x402000);
  CHECK_EQUAL(scene.frames[1].source, KVMGDB_FRAME_POINTER);
  CHECK_EQUAL(scene.frames[2].ip, 0x403000);
}

TEST(unwind, where_a_chain_breaks) {
  UNWINDER *unwinder = NULL;
  struct scene scene;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  add_each(unwinder, 0);
  scene_reset(&scene);
  unwind(unwinder, &scene, FUNCTION(NO_RULE), STACK, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_UNDEFINED);
  CHECK_EQUAL(scene.result.address, FUNCTION(NO_RULE));
  unwind(unwinder, &scene, FUNCTION(LEAF), 0xffffc90000300000, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NEED_STACK);
  CHECK_EQUAL(scene.result.address, 0xffffc90000300000);
  scene.task[0] = 0x1111;
  unwind(unwinder, &scene, FUNCTION(LEAF), STACK, KVMGDB_UNWIND_FROM_CALL);
  /* ip - 1 lies before the table: frame pointers, of which there are none. */
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NO_TABLE);
  CHECK_EQUAL(scene.result.count, 1);
  /* A stack pointer that goes back to where it was. */
  scene.task[0] = STACK - 8;
  unwind(unwinder, &scene, FUNCTION(SWITCHED), STACK, 0);
  CHECK(scene.result.end == KVMGDB_UNWIND_LOOP ||
        scene.result.end == KVMGDB_UNWIND_NEED_STACK);
}

TEST(unwind, overlapping_tables_are_refused) {
  UNWINDER *unwinder = NULL;
  struct kvmgdb_orc_layout layout = old_layout;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  add_each(unwinder, 0);
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT + 0x700, TEXT + 0x900, IPS,
                                  NULL, NULL, 0, &layout, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT + 0x800, TEXT + 0x900, IPS,
                                  NULL, NULL, 0, &layout, NULL),
              KVMGDB_OK);
  layout.sp_reg.bits = 40;
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT + 0x900, TEXT + 0xa00, IPS,
                                  NULL, NULL, 0, &layout, NULL),
              KVMGDB_ERR_INVALID);
}

/* Tables and stacks full of anything: frames stay within bounds. */
TEST(unwind, random_tables_and_stacks) {
  uint64_t state = 521288629521288629u;
  for (int round = 0; round < 3000; round++) {
    UNWINDER *unwinder = NULL;
    int32_t ips[64];
    struct raw_entry entries[64];
    struct scene scene;
    CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
    for (int i = 0; i < 64; i++) {
      uint64_t target = TEXT + random_next(&state) % 0x1000;
      ips[i] = (int32_t)(target - (IPS + 4 * (uint64_t)i));
      uint64_t bits = random_next(&state);
      memcpy(&entries[i], &bits, sizeof(entries[i]));
      entries[i].sp_offset %= 64;
      entries[i].bp_offset %= 64;
    }
    struct kvmgdb_orc_layout layout = round % 2 ? new_layout : old_layout;
    CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT, TEXT + 0x1000, IPS, ips,
                                    entries, 64, &layout, NULL),
                KVMGDB_OK);
    scene_reset(&scene);
    for (int i = 0; i < WORDS; i++) {
      uint64_t value = random_next(&state);
      scene.task[i] = value % 3 ? TEXT + value % 0x1000
                                : STACK + (value >> 8) % (WORDS * 8);
      scene.irq[i] = value;
    }
    unwind(unwinder, &scene, TEXT + random_next(&state) % 0x1000, STACK + 64,
           (int)(random_next(&state) & 3));
    CHECK(scene.result.count >= 1 && scene.result.count <= 32);
    CHECK(scene.result.end >= KVMGDB_UNWIND_COMPLETE &&
          scene.result.end <= KVMGDB_UNWIND_NO_ENTRY);
  }
}
