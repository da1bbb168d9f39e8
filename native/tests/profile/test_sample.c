/* What a sample copies: task, interrupt and user stacks, from guest memory. */
#include <stdbool.h>
#include <string.h>

#include <kvmgdb/profile.h>

#include "../guest.h"
#include "../harness.h"

#define RAM (1 << 20)
/* At a multiple of its size. */
#define TASK_STACK UINT64_C(0xffffc90000010000)
#define STACK_SIZE 0x4000
/* Four pages, at no multiple of their size. */
#define IRQ_STACK UINT64_C(0xffffc90000101000)
#define ENTRY_STACK UINT64_C(0xfffffe0000003000)
#define TASK UINT64_C(0xffff888000001000)
#define CURRENT (TASK + 0x800)
#define USER_STACK UINT64_C(0x7ffffffde000)
#define USER_CODE_SEGMENT 0x33
#define TASK_STACK_MEMBER 0x20
#define TASK_PID_MEMBER 0x100

/* Guest-physical places. */
enum { TASK_AT = 0x40000, IRQ_AT = 0x50000, ENTRY_AT = 0x60000 };
enum { OBJECT_AT = 0x70000, USER_AT = 0x80000, TABLES = 0x90000 };

struct scene {
  struct guest guest;
  struct kvmgdb_sampling sampling;
  struct kvmgdb_stack_area area;
  union {
    struct kvmgdb_sample sample;
    uint8_t bytes[64 << 10];
  } record;
};

static void put(struct scene *scene, uint64_t gpa, uint64_t value) {
  memcpy(scene->guest.ram + gpa, &value, sizeof(value));
}

static void map(struct guest *guest, uint64_t gva, uint64_t gpa, int pages) {
  for (int i = 0; i < pages; i++)
    guest_map(guest, gva + 0x1000 * (uint64_t)i, gpa + 0x1000 * (uint64_t)i, 1,
              WRITABLE);
}

static void scene_init(struct scene *scene) {
  scene->guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  struct guest *guest = &scene->guest;
  map(guest, TASK_STACK, TASK_AT, 4);
  map(guest, IRQ_STACK, IRQ_AT, 4);
  map(guest, ENTRY_STACK, ENTRY_AT, 1);
  map(guest, TASK, OBJECT_AT, 1);
  map(guest, USER_STACK, USER_AT, 2);
  put(scene, OBJECT_AT + 0x800, TASK);
  put(scene, OBJECT_AT + TASK_STACK_MEMBER, TASK_STACK);
  put(scene, OBJECT_AT + TASK_PID_MEMBER, 4711);
  scene->area = (struct kvmgdb_stack_area){IRQ_STACK, IRQ_STACK + STACK_SIZE,
                                           IRQ_STACK + STACK_SIZE - 8};
  scene->sampling = (struct kvmgdb_sampling){
      .kernel_cr3 = guest->paging.cr3,
      .stack_size = STACK_SIZE,
      .kernel_bytes = STACK_SIZE,
      .user_bytes = 0x1000,
      .word_count = 2,
      .word_offset = {TASK_PID_MEMBER, TASK_STACK_MEMBER},
      .area_count = 1,
      .stack_word = 2};
}

static void scene_deinit(struct scene *scene) { guest_destroy(&scene->guest); }
#define SCENE __attribute__((cleanup(scene_deinit))) struct scene

/* The registers of user mode at the end of the task's stack. */
static void enter_from_user(struct scene *scene, uint64_t padding) {
  uint64_t end = TASK_AT + STACK_SIZE - padding;
  put(scene, end - 32, USER_CODE_SEGMENT);
  put(scene, end - 16, USER_STACK + 0x80);
}

static const struct kvmgdb_sample *fill(struct scene *scene, uint64_t ip,
                                        uint64_t sp) {
  struct kvmgdb_sample *sample = &scene->record.sample;
  *sample = (struct kvmgdb_sample){.ip = ip, .sp = sp};
  CHECK_EQUAL(kvmgdb_sample_fill(scene->guest.memory, &scene->guest.paging,
                                 &scene->sampling, &scene->area, CURRENT,
                                 sample, sizeof(scene->record), NULL),
              KVMGDB_OK);
  return sample;
}

/* Whether `address` is copied, with what is there in the guest. */
static bool has(const struct kvmgdb_sample *sample, uint64_t address,
                const uint8_t *guest) {
  for (int i = 0; i < sample->copy_count; i++) {
    const struct kvmgdb_sample_copy *copy = &sample->copy[i];
    if (address >= copy->address && address - copy->address < copy->length)
      return ((const uint8_t *)
                  sample)[copy->offset + address - copy->address] == *guest;
  }
  return false;
}

#define KERNEL_CODE UINT64_C(0xffffffff81000000)

TEST(sample, the_stack_of_a_task_to_its_end_and_that_of_user_mode) {
  SCENE scene;
  scene_init(&scene);
  fill_pattern(scene.guest.ram + TASK_AT, STACK_SIZE, 1);
  fill_pattern(scene.guest.ram + USER_AT, 0x2000, 2);
  enter_from_user(&scene, 0);
  const struct kvmgdb_sample *sample =
      fill(&scene, KERNEL_CODE, TASK_STACK + 0x3001);
  CHECK_EQUAL(sample->copy_count, 2);
  CHECK_EQUAL(sample->copy[0].address, TASK_STACK + 0x3000 - 256);
  CHECK_EQUAL(sample->copy[0].length, 0x1000 + 256);
  CHECK_EQUAL(sample->copy[1].address, USER_STACK + 0x80);
  CHECK_EQUAL(sample->copy[1].length, 0x1000);
  for (uint64_t at = 0x3000; at < STACK_SIZE; at++)
    CHECK(has(sample, TASK_STACK + at, scene.guest.ram + TASK_AT + at));
  CHECK(has(sample, USER_STACK + 0x80, scene.guest.ram + USER_AT + 0x80));
  CHECK_EQUAL(sample->task, TASK);
  CHECK_EQUAL(sample->word[0], 4711);
  CHECK_EQUAL(sample->word[1], TASK_STACK);
  CHECK_EQUAL(sample->word[2], 0);
}

TEST(sample, user_mode_below_the_padding_of_fred) {
  SCENE scene;
  scene_init(&scene);
  enter_from_user(&scene, 16);
  const struct kvmgdb_sample *sample =
      fill(&scene, KERNEL_CODE, TASK_STACK + 0x3f00);
  CHECK_EQUAL(sample->copy_count, 2);
  CHECK_EQUAL(sample->copy[1].address, USER_STACK + 0x80);
}

TEST(sample, an_interrupt_in_a_task) {
  SCENE scene;
  scene_init(&scene);
  enter_from_user(&scene, 0);
  put(&scene, IRQ_AT + STACK_SIZE - 8, TASK_STACK + 0x2000);
  const struct kvmgdb_sample *sample =
      fill(&scene, KERNEL_CODE, IRQ_STACK + 0x3800);
  CHECK_EQUAL(sample->copy_count, 3);
  CHECK_EQUAL(sample->copy[0].address, IRQ_STACK + 0x3800 - 256);
  CHECK_EQUAL(sample->copy[0].address + sample->copy[0].length,
              IRQ_STACK + STACK_SIZE);
  CHECK_EQUAL(sample->copy[1].address, TASK_STACK + 0x2000 - 256);
  CHECK_EQUAL(sample->copy[2].address, USER_STACK + 0x80);
}

TEST(sample, entry_code_has_the_end_of_the_tasks_stack_too) {
  SCENE scene;
  scene_init(&scene);
  enter_from_user(&scene, 0);
  const struct kvmgdb_sample *sample =
      fill(&scene, KERNEL_CODE, ENTRY_STACK + 0xf00);
  CHECK_EQUAL(sample->copy_count, 3);
  CHECK_EQUAL(sample->copy[1].address, TASK_STACK + STACK_SIZE - 256);
  CHECK_EQUAL(sample->copy[2].address, USER_STACK + 0x80);
}

TEST(sample, user_mode_itself) {
  SCENE scene;
  scene_init(&scene);
  const struct kvmgdb_sample *sample =
      fill(&scene, 0x401000, USER_STACK + 0x1ff8);
  CHECK_EQUAL(sample->copy_count, 1);
  CHECK_EQUAL(sample->copy[0].address, USER_STACK + 0x1ff8);
  CHECK_EQUAL(sample->copy[0].length, 8); /* nothing is mapped behind it */
}

TEST(sample, links_that_go_in_circles_end) {
  SCENE scene;
  scene_init(&scene);
  put(&scene, IRQ_AT + STACK_SIZE - 8, IRQ_STACK + 0x3000);
  const struct kvmgdb_sample *sample =
      fill(&scene, KERNEL_CODE, IRQ_STACK + 0x3000);
  CHECK_EQUAL(sample->copy_count, KVMGDB_SAMPLE_COPIES);
  CHECK(sample->size <= sizeof(scene.record));
}

TEST(sample, registers_and_memory_without_any_sense) {
  SCENE scene;
  scene_init(&scene);
  uint64_t state = 7;
  for (int i = 0; i < 2000; i++) {
    fill_pattern(scene.guest.ram + OBJECT_AT, 0x1000, (uint32_t)i);
    put(&scene, IRQ_AT + STACK_SIZE - 8, random_next(&state));
    uint64_t near = IRQ_STACK + random_next(&state) % (STACK_SIZE + 64) - 32;
    uint64_t sp = i % 3 ? near : random_next(&state);
    const struct kvmgdb_sample *sample = fill(&scene, KERNEL_CODE, sp);
    CHECK(sample->size <= sizeof(scene.record));
    CHECK(sample->size % 8 == 0);
  }
}

TEST(sample, what_makes_no_sense_is_refused) {
  SCENE scene;
  scene_init(&scene);
  struct kvmgdb_sample *sample = &scene.record.sample;
  struct kvmgdb_sampling wrong[] = {scene.sampling, scene.sampling,
                                    scene.sampling};
  wrong[0].word_count = KVMGDB_SAMPLE_WORDS + 1;
  wrong[1].stack_size = 0x3000;
  wrong[2].stack_word = KVMGDB_SAMPLE_WORDS + 1;
  for (int i = 0; i < 3; i++)
    CHECK_EQUAL(kvmgdb_sample_fill(scene.guest.memory, &scene.guest.paging,
                                   &wrong[i], &scene.area, 0, sample,
                                   sizeof(scene.record), NULL),
                KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_sample_fill(scene.guest.memory, &scene.guest.paging,
                                 &scene.sampling, &scene.area, 0, sample,
                                 sizeof(*sample) - 1, NULL),
              KVMGDB_ERR_INVALID);
}
