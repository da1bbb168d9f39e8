/* From records of samples to numbered stacks of numbered functions. */
#include <kvmgdb/profile.h>

#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "intern.h"
#include "names.h"
#include "room.h"

#define KERNEL_HALF (UINT64_C(1) << 63)
#define KERNEL_SPACE 0
#define MAX_FRAMES 512
#define MAX_STACK_WORDS ((size_t)1 << 26)
#define MAX_TASK_WORDS ((size_t)1 << 22)
#define MAX_RANGES_SPACE (UINT32_C(1) << 18)
#define KNOWN_REGISTERS 0x1ff /* all of struct kvmgdb_unwind_registers */

/* A task as it is interned. */
struct task_words {
  uint64_t address;
  uint64_t word[KVMGDB_SAMPLE_WORDS];
};

struct kvmgdb_profile {
  const struct kvmgdb_unwinder *unwinder;
  struct kvmgdb_unwinder
      *own_unwinder; /* without tables, where none is given */
  int flags;
  uint32_t exited_frame;
  struct names names;
  struct intern stacks;
  struct intern tasks;
  uint64_t *task_cr3; /* by number */
  size_t task_capacity;
  struct kvmgdb_frame frame[MAX_FRAMES];
};

/* What one call of kvmgdb_profile_take fills. */
struct places {
  struct kvmgdb_profile_place *place;
  size_t count;
  size_t capacity;
};

enum kvmgdb_status kvmgdb_profile_create(const struct kvmgdb_unwinder *unwinder,
                                         int flags, uint32_t exited_frame,
                                         struct kvmgdb_profile **out,
                                         struct kvmgdb_error *error) {
  if (!out || !(flags & (KVMGDB_PROFILE_KERNEL | KVMGDB_PROFILE_USER)))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct kvmgdb_profile *profile = calloc(1, sizeof(*profile));
  if (!profile)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  enum kvmgdb_status status = KVMGDB_OK;
  if (!unwinder)
    status = kvmgdb_unwinder_create(&profile->own_unwinder, error);
  if (status != KVMGDB_OK) {
    free(profile);
    return status;
  }
  profile->unwinder = unwinder ? unwinder : profile->own_unwinder;
  profile->flags = flags;
  profile->exited_frame = exited_frame;
  intern_init(&profile->stacks, MAX_STACK_WORDS);
  intern_init(&profile->tasks, MAX_TASK_WORDS);
  *out = profile;
  return KVMGDB_OK;
}

void kvmgdb_profile_destroy(struct kvmgdb_profile *profile) {
  if (!profile)
    return;
  kvmgdb_unwinder_destroy(profile->own_unwinder);
  names_deinit(&profile->names);
  intern_deinit(&profile->stacks);
  intern_deinit(&profile->tasks);
  free(profile->task_cr3);
  free(profile);
}

enum kvmgdb_status kvmgdb_profile_name(struct kvmgdb_profile *profile,
                                       const struct kvmgdb_profile_place *place,
                                       uint64_t start, uint64_t end,
                                       uint32_t frame,
                                       struct kvmgdb_error *error) {
  if (!profile || !place || place->address < start || place->address >= end ||
      place->space >= MAX_RANGES_SPACE)
    return error_set(error, KVMGDB_ERR_INVALID, 0, start);
  if (!names_add(&profile->names, place->space, place->address, start, end,
                 frame))
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_profile_renew(struct kvmgdb_profile *profile,
                                        const struct kvmgdb_unwinder *unwinder,
                                        uint64_t start, uint64_t end,
                                        struct kvmgdb_error *error) {
  if (!profile || !unwinder || start >= end)
    return error_set(error, KVMGDB_ERR_INVALID, 0, start);
  profile->unwinder = unwinder;
  names_forget(&profile->names, KERNEL_SPACE, 0, start);
  names_forget(&profile->names, KERNEL_SPACE, end, UINT64_MAX);
  return KVMGDB_OK;
}

/* ---- one record ---------------------------------------------------------- */

static bool is_sound(const struct kvmgdb_sample *sample, size_t length) {
  if (sample->size > length || sample->size % 8 ||
      sample->size < sizeof(*sample) ||
      sample->copy_count > KVMGDB_SAMPLE_COPIES ||
      sample->state > KVMGDB_SAMPLE_STOPPED)
    return false;
  for (int i = 0; i < sample->copy_count; i++) {
    const struct kvmgdb_sample_copy *copy = &sample->copy[i];
    if (copy->offset > sample->size ||
        copy->length > sample->size - copy->offset)
      return false;
  }
  return true;
}

static enum kvmgdb_status find_task(struct kvmgdb_profile *profile,
                                    const struct kvmgdb_sample *sample,
                                    uint32_t *task,
                                    struct kvmgdb_error *error) {
  struct task_words words = {.address = sample->task};
  memcpy(words.word, sample->word, sizeof(words.word));
  uint32_t as_words[sizeof(words) / sizeof(uint32_t)];
  memcpy(as_words, &words, sizeof(words));
  size_t before = profile->tasks.count;
  if (!intern_add(&profile->tasks, as_words,
                  sizeof(as_words) / sizeof(as_words[0]), task))
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  if (*task < before)
    return KVMGDB_OK;
  uint64_t *cr3 = room_for(profile->task_cr3, &profile->task_capacity,
                           (size_t)*task + 1, sizeof(*cr3));
  if (!cr3)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  profile->task_cr3 = cr3;
  profile->task_cr3[*task] = sample->cr3;
  return KVMGDB_OK;
}

static enum kvmgdb_status unwind(struct kvmgdb_profile *profile,
                                 const struct kvmgdb_sample *sample,
                                 struct kvmgdb_unwind_result *result,
                                 struct kvmgdb_error *error) {
  const struct kvmgdb_unwind_registers registers = {.ip = sample->ip,
                                                    .sp = sample->sp,
                                                    .bp = sample->bp,
                                                    .ax = sample->ax,
                                                    .dx = sample->dx,
                                                    .di = sample->di,
                                                    .r10 = sample->r10,
                                                    .r13 = sample->r13,
                                                    .cx = sample->cx,
                                                    .known = KNOWN_REGISTERS};
  struct kvmgdb_stack stacks[KVMGDB_SAMPLE_COPIES];
  for (int i = 0; i < sample->copy_count; i++)
    stacks[i] = (struct kvmgdb_stack){.address = sample->copy[i].address,
                                      .data = (const char *)sample +
                                              sample->copy[i].offset,
                                      .length = sample->copy[i].length};
  int flags =
      profile->flags & KVMGDB_PROFILE_USER ? KVMGDB_UNWIND_USER_FRAMES : 0;
  return kvmgdb_unwind(profile->unwinder, &registers, stacks,
                       sample->copy_count, flags, profile->frame, MAX_FRAMES,
                       result, error);
}

static bool is_wanted(const struct kvmgdb_profile *profile, uint64_t address) {
  int flag =
      address >= KERNEL_HALF ? KVMGDB_PROFILE_KERNEL : KVMGDB_PROFILE_USER;
  return profile->flags & flag;
}

/* A return address belongs to the call before it, which may be the last
 * instruction of its function. Nothing is before the first address of all, and
 * no range holds the last. */
static uint64_t code_of(const struct kvmgdb_frame *frame) {
  bool before = frame->is_exact ? frame->ip == UINT64_MAX : frame->ip != 0;
  return frame->ip - before;
}

/* The number of a frame's function; one without a name is put into `places`. */
static uint32_t number_of(const struct kvmgdb_profile *profile,
                          uint64_t address, uint32_t task,
                          struct places *places) {
  uint32_t space = address >= KERNEL_HALF ? KERNEL_SPACE : task + 1;
  uint32_t number = 0;
  if (!names_find(&profile->names, space, address, &number) &&
      places->count < places->capacity)
    places->place[places->count++] =
        (struct kvmgdb_profile_place){space, address};
  return number;
}

/* The numbers of the functions, root first; those without are put into
 * `places`. */
static uint32_t name_frames(const struct kvmgdb_profile *profile,
                            size_t frame_count, uint32_t task,
                            struct places *places, uint32_t *numbers) {
  uint32_t count = 0;
  for (size_t i = 0; i < frame_count; i++) {
    uint64_t address = code_of(&profile->frame[i]);
    if (!is_wanted(profile, address))
      continue;
    uint32_t number = number_of(profile, address, task, places);
    if ((number & KVMGDB_PROFILE_NOT_CODE) && !profile->frame[i].is_exact)
      break;
    numbers[count++] = number & ~(uint32_t)KVMGDB_PROFILE_NOT_CODE;
  }
  for (uint32_t i = 0; i < count / 2; i++) {
    uint32_t other = numbers[count - 1 - i];
    numbers[count - 1 - i] = numbers[i];
    numbers[i] = other;
  }
  return count;
}

/* Whether the kernel's part of a stack came to no end. That user code keeps no
 * frame pointers is the usual case. */
static bool is_broken(const struct kvmgdb_profile *profile,
                      const struct kvmgdb_unwind_result *result) {
  if (result->end == KVMGDB_UNWIND_COMPLETE ||
      result->end == KVMGDB_UNWIND_USER)
    return false;
  return profile->frame[result->count - 1].ip >= KERNEL_HALF;
}

static enum kvmgdb_status take_one(struct kvmgdb_profile *profile,
                                   const struct kvmgdb_sample *sample,
                                   struct kvmgdb_profiled *out,
                                   struct places *places,
                                   struct kvmgdb_error *error) {
  uint32_t numbers[MAX_FRAMES + 1], count = 0;
  *out = (struct kvmgdb_profiled){.time_ns = sample->time_ns,
                                  .held_ns = sample->held_ns,
                                  .vcpu = sample->vcpu,
                                  .ip = sample->ip,
                                  .cr3 = sample->cr3,
                                  .state = sample->state};
  enum kvmgdb_status status = find_task(profile, sample, &out->task, error);
  if (status != KVMGDB_OK)
    return status;
  if (sample->state == KVMGDB_SAMPLE_RUNNING ||
      sample->state == KVMGDB_SAMPLE_EXITED) {
    struct kvmgdb_unwind_result result;
    status = unwind(profile, sample, &result, error);
    if (status != KVMGDB_OK)
      return status;
    count = name_frames(profile, result.count, out->task, places, numbers);
    if (places->count)
      return KVMGDB_OK;
    if (sample->state == KVMGDB_SAMPLE_EXITED)
      numbers[count++] = profile->exited_frame;
    out->broken = is_broken(profile, &result);
    out->end = result.end;
    out->address = result.address;
  }
  if (!intern_add(&profile->stacks, numbers, count, &out->stack))
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  return KVMGDB_OK;
}

/* The size of the record at `data`, which begins with it. */
static uint32_t size_of_record(const void *data) {
  uint32_t size;
  memcpy(&size, data, sizeof(size));
  return size;
}

enum kvmgdb_status
kvmgdb_profile_take(struct kvmgdb_profile *profile, const void *data,
                    size_t length, struct kvmgdb_profiled *out, size_t capacity,
                    size_t *count, size_t *consumed,
                    struct kvmgdb_profile_place *places, size_t place_capacity,
                    size_t *place_count, struct kvmgdb_error *error) {
  if (!profile || (!data && length) || !out || !count || !consumed || !places ||
      !place_count || place_capacity < 2 * MAX_FRAMES ||
      (uintptr_t)data % sizeof(uint64_t))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct places unknown = {places, 0, place_capacity};
  *count = *consumed = *place_count = 0;
  while (*consumed < length && *count < capacity) {
    const void *record = (const char *)data + *consumed;
    size_t left = length - *consumed;
    const struct kvmgdb_sample *sample = record;
    if (left < 8 || size_of_record(record) > left)
      return error_set(error, KVMGDB_ERR_MALFORMED, 0, *consumed);
    uint32_t size = size_of_record(record);
    if (size >= 8 && size % 8 == 0 && sample->state == KVMGDB_SAMPLE_PADDING) {
      *consumed += size;
      continue;
    }
    if (left < sizeof(*sample) || !is_sound(sample, left))
      return error_set(error, KVMGDB_ERR_MALFORMED, 0, *consumed);
    enum kvmgdb_status status =
        take_one(profile, sample, &out[*count], &unknown, error);
    if (status != KVMGDB_OK)
      return status;
    if (unknown.count)
      break;
    *consumed += size;
    ++*count;
  }
  *place_count = unknown.count;
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_profile_stack(const struct kvmgdb_profile *profile,
                                        uint32_t stack, const uint32_t **frames,
                                        size_t *count,
                                        struct kvmgdb_error *error) {
  uint32_t length;
  if (!profile || !frames || !count)
    return error_set(error, KVMGDB_ERR_INVALID, 0, stack);
  *frames = intern_get(&profile->stacks, stack, &length);
  if (!*frames)
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, stack);
  *count = length;
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_profile_task(const struct kvmgdb_profile *profile,
                                       uint32_t task, uint64_t *address,
                                       uint64_t *words, uint64_t *cr3,
                                       struct kvmgdb_error *error) {
  uint32_t length;
  if (!profile || !address || !words || !cr3)
    return error_set(error, KVMGDB_ERR_INVALID, 0, task);
  const uint32_t *found = intern_get(&profile->tasks, task, &length);
  if (!found)
    return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, task);
  struct task_words as_task;
  memcpy(&as_task, found, sizeof(as_task));
  *address = as_task.address;
  memcpy(words, as_task.word, sizeof(as_task.word));
  *cr3 = profile->task_cr3[task];
  return KVMGDB_OK;
}
