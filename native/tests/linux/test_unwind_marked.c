/* Code without a rule of its own, as it was marked. */
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
#define TRAMPOLINE UINT64_C(0xffffffffc0000000)
#define STACK UINT64_C(0xffffc90000000000)
#define USER_IP UINT64_C(0x401000)
#define USER_SP UINT64_C(0x7fff0008)
#define WORDS 32

/* Functions of the table, 0x100 bytes each, and what follows without a rule. */
enum { LEAF, LAST, PARTIAL, UNRULED };
#define FUNCTION(number) (TEXT + 0x100 * (number))
#define THUNK FUNCTION(UNRULED)
#define SYSCALL FUNCTION(UNRULED + 1)
#define IRET FUNCTION(UNRULED + 2)

static const struct kvmgdb_orc_layout layout = {
    ORC_LAYOUT, .registers = KVMGDB_ORC_REGISTERS_SP5};

struct scene {
  uint64_t stack[WORDS];
  struct kvmgdb_frame frames[8];
  struct kvmgdb_unwind_result result;
};

static struct kvmgdb_unwinder *create(void) {
  struct kvmgdb_unwinder *unwinder;
  struct kvmgdb_orc_layout copy = layout;
  /* A call; the end; an interrupt's frame above an error code. */
  const struct raw_entry entries[] = {
      {8, 0, 5 | 2 << 8}, {0, 0, 1 << 8}, {8, 0, 5 | 4 << 8}, {0, 0, 0}};
  int32_t ips[4];
  for (int i = 0; i < 4; i++)
    ips[i] = 0x100 * i - 4 * i;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT, TEXT + 0x1000, TEXT, ips,
                                  entries, 4, &copy, NULL),
              KVMGDB_OK);
  static const struct {
    uint64_t start;
    enum kvmgdb_code code;
    uint64_t original;
  } marks[] = {{TRAMPOLINE, KVMGDB_CODE_COPY, FUNCTION(LEAF)},
               {SYSCALL, KVMGDB_CODE_SYSCALL, 0},
               {THUNK, KVMGDB_CODE_THUNK, 0},
               {IRET, KVMGDB_CODE_IRET, 0}};
  for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++)
    CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, marks[i].start,
                                     marks[i].start + 0x100, marks[i].code,
                                     marks[i].original, NULL),
                KVMGDB_OK);
  return unwinder;
}

/* With di and cx known; the stack begins at sp. */
static void unwind(const struct kvmgdb_unwinder *unwinder, struct scene *scene,
                   uint64_t ip, uint64_t sp, uint64_t di, uint64_t cx) {
  struct kvmgdb_unwind_registers registers = {
      .ip = ip, .sp = sp, .di = di, .cx = cx, .known = 1 | 2 | 1 << 5 | 1 << 8};
  struct kvmgdb_stack stack = {STACK, scene->stack, sizeof(scene->stack)};
  CHECK_EQUAL(kvmgdb_unwind(unwinder, &registers, &stack, 1, 0, scene->frames,
                            8, &scene->result, NULL),
              KVMGDB_OK);
}

static void put_user_entry(uint64_t *frame) {
  const uint64_t words[] = {USER_IP, 0x33, 0x202, USER_SP, 0x2b};
  memcpy(frame, words, sizeof(words));
}

static void check_user(const struct scene *scene, uint64_t sp) {
  CHECK_EQUAL(scene->result.count, 2);
  CHECK_EQUAL(scene->result.end, KVMGDB_UNWIND_USER);
  CHECK_EQUAL(scene->frames[1].ip, USER_IP);
  CHECK_EQUAL(scene->frames[1].sp, sp);
  CHECK_EQUAL(scene->frames[1].source, KVMGDB_FRAME_USER_REGISTERS);
  CHECK_EQUAL(scene->frames[1].is_exact, 1);
}

TEST(marked, thunk) {
  UNWINDER *unwinder = create();
  /* At its jump, and behind the call that a retpoline makes of itself. */
  for (int called = 0; called < 2; called++) {
    struct scene scene = {.stack = {THUNK + 5}};
    scene.stack[called] = FUNCTION(LAST) + 9;
    unwind(unwinder, &scene, THUNK + 12, STACK, 0, 0);
    CHECK_EQUAL(scene.result.count, 2);
    CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
    CHECK_EQUAL(scene.frames[1].ip, FUNCTION(LAST) + 9);
    CHECK_EQUAL(scene.frames[1].sp, STACK + 8 + 8 * (uint64_t)called);
    CHECK_EQUAL(scene.frames[1].source, KVMGDB_FRAME_STACK_TOP);
    CHECK_EQUAL(scene.frames[1].is_exact, 0);
  }
}

/* Before its return the target is on top: a function that begins right there,
 * where a return address would belong to the one before. */
TEST(marked, thunk_that_returns) {
  UNWINDER *unwinder = NULL;
  struct kvmgdb_orc_layout copy = layout;
  const struct raw_entry entries[] = {{0, 0, 0}, {8, 0, 5 | 2 << 8}};
  const int32_t ips[] = {0, 0x100 - 4};
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_unwinder_add(unwinder, TEXT, TEXT + 0x300, TEXT, ips,
                                  entries, 2, &copy, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, TEXT + 0x200, TEXT + 0x300,
                                   KVMGDB_CODE_THUNK, 0, NULL),
              KVMGDB_OK);
  struct scene scene = {.stack = {TEXT + 0x100, TEXT + 0x150}};
  unwind(unwinder, &scene, TEXT + 0x210, STACK, 0, 0);
  CHECK(scene.result.count >= 3);
  CHECK_EQUAL(scene.frames[1].ip, TEXT + 0x100);
  CHECK_EQUAL(scene.frames[1].is_exact, 1);
  CHECK_EQUAL(scene.frames[2].ip, TEXT + 0x150);
}

/* Whatever the rule says, and whatever calls of its own are on the stack. */
TEST(marked, calls_itself) {
  UNWINDER *unwinder = create();
  CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, FUNCTION(LEAF),
                                   FUNCTION(LEAF) + 0x80,
                                   KVMGDB_CODE_CALLS_ITSELF, 24, NULL),
              KVMGDB_OK);
  for (size_t calls = 0; calls < 4; calls++) {
    struct scene scene = {.stack = {0}};
    for (size_t i = 0; i < calls; i++)
      scene.stack[i] = FUNCTION(LEAF) + 0x20;
    /* A saved register that could be a return address. */
    scene.stack[calls] = FUNCTION(LEAF) + 0x90;
    scene.stack[calls + 2] = FUNCTION(LAST) + 9;
    unwind(unwinder, &scene, FUNCTION(LEAF) + 0x20, STACK, 0, 0);
    CHECK_EQUAL(scene.result.count, 2);
    CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
    CHECK_EQUAL(scene.frames[1].ip, FUNCTION(LAST) + 9);
    CHECK_EQUAL(scene.frames[1].sp, STACK + 8 * (uint64_t)(calls + 3));
  }
  CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, TRAMPOLINE + 0x1000,
                                   TRAMPOLINE + 0x2000,
                                   KVMGDB_CODE_CALLS_ITSELF, 1 << 20, NULL),
              KVMGDB_ERR_INVALID);
}

TEST(marked, system_call) {
  UNWINDER *unwinder = create();
  struct scene scene = {0};
  unwind(unwinder, &scene, SYSCALL, USER_SP, 0, USER_IP);
  check_user(&scene, USER_SP);
  /* With page tables, or the kernel's stack, in sp. */
  unwind(unwinder, &scene, SYSCALL + 9, 0x1b8a000, 0, USER_IP);
  check_user(&scene, 0);
  unwind(unwinder, &scene, SYSCALL + 9, STACK, 0, USER_IP);
  check_user(&scene, 0);
  unwind(unwinder, &scene, SYSCALL, USER_SP, 0, STACK);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NO_ENTRY);
  CHECK_EQUAL(scene.result.address, SYSCALL);
}

TEST(marked, return_to_user_mode) {
  UNWINDER *unwinder = create();
  for (int pushed = 0; pushed < 3; pushed++) {
    struct scene scene = {0};
    put_user_entry(&scene.stack[4 + pushed]);
    unwind(unwinder, &scene, IRET, STACK + 32, 0, 0);
    check_user(&scene, USER_SP);
  }
  struct scene scene = {0};
  put_user_entry(&scene.stack[10]);
  unwind(unwinder, &scene, IRET, STACK + 8, STACK + 64, 0);
  check_user(&scene, USER_SP);
  unwind(unwinder, &scene, IRET, STACK + 8, STACK, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NO_ENTRY);
  unwind(unwinder, &scene, IRET, STACK + 8, STACK + 0x10000, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NEED_STACK);
  unwind(unwinder, &scene, IRET, STACK + 8, 0x1b8a000, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NO_ENTRY);
}

TEST(marked, copied_code) {
  UNWINDER *unwinder = create();
  struct scene scene = {.stack = {FUNCTION(LAST) + 9}};
  unwind(unwinder, &scene, TRAMPOLINE + 0x20, STACK, 0, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_COMPLETE);
  CHECK_EQUAL(scene.frames[1].ip, FUNCTION(LAST) + 9);
  CHECK_EQUAL(scene.frames[1].source, KVMGDB_FRAME_ORC);
}

/* The rule is still for the interrupt's frame, and all registers lie there. */
TEST(marked, all_registers_where_the_rule_has_some) {
  UNWINDER *unwinder = create();
  struct scene scene = {0};
  put_user_entry(&scene.stack[16]);
  unwind(unwinder, &scene, FUNCTION(PARTIAL), STACK, 0, 0);
  check_user(&scene, USER_SP);
  memset(scene.stack, 0, sizeof(scene.stack));
  unwind(unwinder, &scene, FUNCTION(PARTIAL), STACK, 0, 0);
  CHECK_EQUAL(scene.result.end, KVMGDB_UNWIND_NO_ENTRY);
}

/* Addresses that FILL_RETURN_BUFFER left, and the call of a null pointer. */
TEST(marked, calls_that_do_not_return) {
  UNWINDER *unwinder = create();
  struct scene scene = {0};
  for (int i = 0; i < 5; i++)
    scene.stack[i] = TEXT - 8;
  scene.stack[5] = FUNCTION(LAST) + 1;
  unwind(unwinder, &scene, FUNCTION(LEAF), STACK, 0, 0);
  CHECK_EQUAL(scene.result.count, 2);
  CHECK_EQUAL(scene.frames[1].ip, FUNCTION(LAST) + 1);
  CHECK_EQUAL(scene.frames[1].sp, STACK + 48);

  scene.stack[0] = 0; /* above an error code, */
  scene.stack[1] = 0; /* ip: of kernel code that called it */
  scene.stack[2] = 0x10;
  scene.stack[4] = STACK + 80;
  scene.stack[10] = FUNCTION(LAST) + 1;
  unwind(unwinder, &scene, FUNCTION(PARTIAL), STACK, 0, 0);
  CHECK_EQUAL(scene.result.count, 3);
  CHECK_EQUAL(scene.frames[1].ip, 0);
  CHECK_EQUAL(scene.frames[2].ip, FUNCTION(LAST) + 1);
  CHECK_EQUAL(scene.frames[2].source, KVMGDB_FRAME_STACK_TOP);
}

TEST(marked, marks_that_are_refused) {
  UNWINDER *unwinder = create();
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, THUNK + 0x80, THUNK + 0x90,
                                   KVMGDB_CODE_THUNK, 0, &error),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(
      kvmgdb_unwinder_mark(unwinder, TEXT, TEXT, KVMGDB_CODE_THUNK, 0, &error),
      KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_unwinder_mark(unwinder, 0x1000, 0x2000,
                                   (enum kvmgdb_code)9, 0, &error),
              KVMGDB_ERR_INVALID);
}

/* Whatever stands on the stack and in the registers: it ends, within bounds. */
TEST(marked, random_stacks) {
  UNWINDER *unwinder = create();
  uint64_t state = 1181783497276652981u;
  for (int round = 0; round < 20000; round++) {
    struct scene scene;
    for (int i = 0; i < WORDS; i++) {
      uint64_t value = random_next(&state);
      scene.stack[i] = value % 4 == 0   ? TRAMPOLINE + (value >> 8) % 0x100
                       : value % 4 == 1 ? STACK + (value >> 8) % (8 * WORDS)
                       : value % 4 == 2 ? (value >> 8) % 0x40
                                        : TEXT + (value >> 8) % 0x700;
    }
    unwind(unwinder, &scene, TEXT + random_next(&state) % 0x700,
           STACK + random_next(&state) % (8 * WORDS),
           STACK + random_next(&state) % (8 * WORDS), random_next(&state));
    CHECK(scene.result.count >= 1 && scene.result.count <= 8);
    CHECK(scene.result.end >= KVMGDB_UNWIND_COMPLETE &&
          scene.result.end <= KVMGDB_UNWIND_NO_ENTRY);
  }
}
