/* From records to stacks: frame pointers in user mode, names, and nonsense. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <kvmgdb/profile.h>

#include "../guest.h"
#include "../harness.h"

#define PLACES 1024
#define EXITED 99
#define STACK UINT64_C(0x7ff000)

static void destroy(struct kvmgdb_profile **profile) {
  kvmgdb_profile_destroy(*profile);
}
static void destroy_unwinder(struct kvmgdb_unwinder **unwinder) {
  kvmgdb_unwinder_destroy(*unwinder);
}
#define PROFILE __attribute__((cleanup(destroy))) struct kvmgdb_profile

static struct kvmgdb_profile *create(int flags) {
  struct kvmgdb_profile *profile;
  CHECK_EQUAL(kvmgdb_profile_create(NULL, flags, EXITED, &profile, NULL),
              KVMGDB_OK);
  return profile;
}

struct record {
  struct kvmgdb_sample sample;
  uint64_t stack[4];
};

/* main calls outer calls inner, in `task`. */
static struct record record(uint64_t task, int state) {
  return (struct record){
      .sample = {.size = sizeof(struct record),
                 .state = (uint8_t)state,
                 .copy_count = 1,
                 .ip = 0x3010,
                 .sp = STACK,
                 .bp = STACK,
                 .task = task,
                 .copy = {{STACK, 32, offsetof(struct record, stack)}}},
      .stack = {STACK + 16, 0x2010, 0, 0x1010}};
}

struct result {
  struct kvmgdb_profiled rows[16];
  struct kvmgdb_profile_place places[PLACES];
  size_t count, consumed, place_count;
};

static enum kvmgdb_status take(struct kvmgdb_profile *profile, const void *data,
                               size_t length, struct result *result) {
  return kvmgdb_profile_take(profile, data, length, result->rows, 16,
                             &result->count, &result->consumed, result->places,
                             PLACES, &result->place_count, NULL);
}

static enum kvmgdb_status name_at(struct kvmgdb_profile *profile,
                                  uint32_t space, uint64_t address,
                                  uint64_t start, uint64_t end,
                                  uint32_t frame) {
  const struct kvmgdb_profile_place place = {space, address};
  return kvmgdb_profile_name(profile, &place, start, end, frame, NULL);
}

static void name(struct kvmgdb_profile *profile, uint32_t space) {
  for (uint32_t i = 1; i <= 3; i++)
    CHECK_EQUAL(
        name_at(profile, space, 0x1000 * i, 0x1000 * i, 0x1000 * (i + 1), i),
        KVMGDB_OK);
}

TEST(profile, names_are_asked_for_once_and_stacks_are_numbered) {
  PROFILE *profile = create(KVMGDB_PROFILE_KERNEL | KVMGDB_PROFILE_USER);
  struct record records[] = {
      record(5, KVMGDB_SAMPLE_RUNNING), record(5, KVMGDB_SAMPLE_EXITED),
      record(5, KVMGDB_SAMPLE_RUNNING), record(5, KVMGDB_SAMPLE_HALTED)};
  static struct result result;
  CHECK_EQUAL(take(profile, records, sizeof(records), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 0);
  CHECK_EQUAL(result.consumed, 0);
  CHECK_EQUAL(result.place_count, 3);
  CHECK_EQUAL(result.places[0].space, 1);
  CHECK_EQUAL(result.places[0].address, 0x3010); /* where it was interrupted */
  CHECK_EQUAL(result.places[2].address, 0x100f); /* before the return address */
  name(profile, 1);
  CHECK_EQUAL(take(profile, records, sizeof(records), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 4);
  CHECK_EQUAL(result.consumed, sizeof(records));
  CHECK_EQUAL(result.place_count, 0);
  CHECK_EQUAL(result.rows[0].stack, result.rows[2].stack);
  const uint32_t *frames;
  size_t count;
  CHECK_EQUAL(kvmgdb_profile_stack(profile, result.rows[0].stack, &frames,
                                   &count, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(count, 3);
  CHECK(frames[0] == 1 && frames[1] == 2 && frames[2] == 3);
  CHECK_EQUAL(kvmgdb_profile_stack(profile, result.rows[1].stack, &frames,
                                   &count, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(count, 4);
  CHECK_EQUAL(frames[3], EXITED);
  CHECK_EQUAL(kvmgdb_profile_stack(profile, result.rows[3].stack, &frames,
                                   &count, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(count, 0);
  CHECK_EQUAL(kvmgdb_profile_stack(profile, 1000, &frames, &count, NULL),
              KVMGDB_ERR_NOT_FOUND);
}

TEST(profile, another_task_has_names_of_its_own) {
  PROFILE *profile = create(KVMGDB_PROFILE_USER);
  struct record records[] = {record(5, KVMGDB_SAMPLE_RUNNING),
                             record(6, KVMGDB_SAMPLE_RUNNING)};
  static struct result result;
  CHECK_EQUAL(take(profile, records, sizeof(records), &result), KVMGDB_OK);
  name(profile, 1);
  CHECK_EQUAL(take(profile, records, sizeof(records), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 1);
  CHECK_EQUAL(result.consumed, sizeof(records[0]));
  CHECK_EQUAL(result.places[0].space, 2);
  uint64_t address, words[KVMGDB_SAMPLE_WORDS], cr3;
  CHECK_EQUAL(kvmgdb_profile_task(profile, 1, &address, words, &cr3, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(address, 6);
  CHECK_EQUAL(kvmgdb_profile_task(profile, 2, &address, words, &cr3, NULL),
              KVMGDB_ERR_NOT_FOUND);
}

TEST(profile, a_name_does_not_take_what_has_one) {
  PROFILE *profile = create(KVMGDB_PROFILE_USER);
  struct record one = record(5, KVMGDB_SAMPLE_RUNNING);
  static struct result result;
  CHECK_EQUAL(name_at(profile, 1, 0x2000, 0x2000, 0x3000, 20), KVMGDB_OK);
  CHECK_EQUAL(name_at(profile, 1, 0x1000, 0x1000, 0x2800, 10), KVMGDB_OK);
  /* It begins before what is named already, and ends behind it. */
  CHECK_EQUAL(name_at(profile, 1, 0x3010, 0x900, 0x4000, 30), KVMGDB_OK);
  CHECK_EQUAL(name_at(profile, 1, 0x2010, 0x900, 0x4000, 40), KVMGDB_OK);
  CHECK_EQUAL(take(profile, &one, sizeof(one), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 1);
  const uint32_t *frames;
  size_t count;
  CHECK_EQUAL(kvmgdb_profile_stack(profile, result.rows[0].stack, &frames,
                                   &count, NULL),
              KVMGDB_OK);
  CHECK(frames[0] == 10 && frames[1] == 20 && frames[2] == 30);
  CHECK_EQUAL(name_at(profile, 1, 5, 5, 5, 1), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(name_at(profile, 1, 5, 6, 7, 1), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(name_at(profile, UINT32_MAX, 5, 5, 6, 1), KVMGDB_ERR_INVALID);
}

/* ---- nobody calls from where no code is: such frames are made up --------- */

static uint32_t frames_with(bool first, bool second, uint32_t *innermost) {
  PROFILE *profile = create(KVMGDB_PROFILE_USER);
  struct record one = record(5, KVMGDB_SAMPLE_RUNNING);
  static struct result result;
  uint32_t not_code = KVMGDB_PROFILE_NOT_CODE;
  name_at(profile, 1, 0x1000, 0x1000, 0x2000, 10);
  name_at(profile, 1, 0x2000, 0x2000, 0x3000, first ? 20 | not_code : 20);
  name_at(profile, 1, 0x3000, 0x3000, 0x4000, second ? 30 | not_code : 30);
  CHECK_EQUAL(take(profile, &one, sizeof(one), &result), KVMGDB_OK);
  const uint32_t *frames;
  size_t count;
  CHECK_EQUAL(kvmgdb_profile_stack(profile, result.rows[0].stack, &frames,
                                   &count, NULL),
              KVMGDB_OK);
  *innermost = frames[count - 1];
  return (uint32_t)count;
}

TEST(profile, a_caller_that_is_no_code_ends_the_stack) {
  uint32_t innermost;
  CHECK_EQUAL(frames_with(false, false, &innermost), 3);
  CHECK_EQUAL(frames_with(true, false, &innermost), 1);
  CHECK_EQUAL(innermost, 30);
}

TEST(profile, what_is_executed_is_shown_all_the_same) {
  uint32_t innermost;
  CHECK_EQUAL(frames_with(false, true, &innermost), 3);
  CHECK_EQUAL(innermost, 30);
}

TEST(profile, the_last_address_has_a_name) {
  PROFILE *profile = create(KVMGDB_PROFILE_KERNEL);
  struct record one = record(5, KVMGDB_SAMPLE_RUNNING);
  static struct result result;
  one.sample.ip = UINT64_MAX;
  one.sample.copy_count = 0;
  CHECK_EQUAL(take(profile, &one, sizeof(one), &result), KVMGDB_OK);
  CHECK_EQUAL(result.place_count, 1);
  CHECK_EQUAL(name_at(profile, 0, result.places[0].address, UINT64_MAX - 9,
                      UINT64_MAX, 1),
              KVMGDB_OK);
  CHECK_EQUAL(take(profile, &one, sizeof(one), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 1);
}

TEST(profile, modules_come_and_go) {
  PROFILE *profile = create(KVMGDB_PROFILE_KERNEL | KVMGDB_PROFILE_USER);
  __attribute__((cleanup(destroy_unwinder))) struct kvmgdb_unwinder *unwinder;
  CHECK_EQUAL(kvmgdb_unwinder_create(&unwinder, NULL), KVMGDB_OK);
  uint64_t kernel = UINT64_C(0xffffffff81000000);
  struct record one = record(5, KVMGDB_SAMPLE_RUNNING);
  one.sample.copy_count = 0;
  one.sample.bp = 0;
  static struct result result;
  for (uint64_t page = 0; page < 3; page++)
    CHECK_EQUAL(name_at(profile, 0, kernel + page * 0x1000,
                        kernel + page * 0x1000, kernel + (page + 1) * 0x1000,
                        7),
                KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_profile_renew(profile, unwinder, kernel + 0x1000,
                                   kernel + 0x2000, NULL),
              KVMGDB_OK);
  for (uint64_t page = 0; page < 3; page++) {
    one.sample.ip = kernel + page * 0x1000 + 8;
    CHECK_EQUAL(take(profile, &one, sizeof(one), &result), KVMGDB_OK);
    CHECK_EQUAL(result.place_count, page == 1 ? 0 : 1);
  }
  CHECK_EQUAL(kvmgdb_profile_renew(profile, NULL, 0, 1, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_profile_renew(profile, unwinder, 1, 1, NULL),
              KVMGDB_ERR_INVALID);
}

TEST(profile, padding_is_passed_over) {
  PROFILE *profile = create(KVMGDB_PROFILE_USER);
  struct {
    uint64_t padding[2];
    struct record record;
  } data = {{16, 0}, record(5, KVMGDB_SAMPLE_HALTED)};
  static struct result result;
  CHECK_EQUAL(take(profile, &data, sizeof(data), &result), KVMGDB_OK);
  CHECK_EQUAL(result.count, 1);
  CHECK_EQUAL(result.consumed, sizeof(data));
}

TEST(profile, records_that_are_none) {
  PROFILE *profile = create(KVMGDB_PROFILE_USER);
  static struct result result;
  struct record good = record(5, KVMGDB_SAMPLE_RUNNING), bad[6];
  for (int i = 0; i < 6; i++)
    bad[i] = good;
  bad[0].sample.size = 0;
  bad[1].sample.size += 1;
  bad[2].sample.size += 8; /* longer than what there is */
  bad[3].sample.copy_count = KVMGDB_SAMPLE_COPIES + 1;
  bad[4].sample.copy[0].length = 40;
  bad[5].sample.state = 77;
  for (int i = 0; i < 6; i++)
    CHECK_EQUAL(take(profile, &bad[i], sizeof(bad[i]), &result),
                KVMGDB_ERR_MALFORMED);
  for (size_t length = 1; length < sizeof(good); length++)
    CHECK_EQUAL(take(profile, &good, length, &result), KVMGDB_ERR_MALFORMED);
}

/* Whatever is in them: no access outside, and always an end. */
TEST(profile, records_without_any_sense) {
  PROFILE *profile = create(KVMGDB_PROFILE_KERNEL | KVMGDB_PROFILE_USER);
  static struct result result;
  uint64_t state = 3;
  for (int i = 0; i < 20000; i++) {
    struct record damaged = record(random_next(&state) % 4, 1 + i % 2);
    for (int change = 0; change < 3; change++) {
      size_t at = random_next(&state) % sizeof(damaged);
      ((uint8_t *)&damaged)[at] = (uint8_t)random_next(&state);
    }
    for (int round = 0; round < 2; round++) {
      if (take(profile, &damaged, sizeof(damaged), &result))
        break;
      for (size_t place = 0; place < result.place_count; place++)
        CHECK_EQUAL(name_at(profile, result.places[place].space,
                            result.places[place].address,
                            result.places[place].address,
                            result.places[place].address + 1, 7),
                    KVMGDB_OK);
    }
  }
}
