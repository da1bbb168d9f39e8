/*
 * What a sample needs of guest memory, read in the time for which its vCPU
 * stands: a few thousand bytes, through as few page-table entries as possible.
 */
#include <string.h>

#include <kvmgdb/profile.h>

#include "error.h"
#include "memory.h"
#include "paging.h"

#define KERNEL_HALF (UINT64_C(1) << 63)
#define MAX_WINDOW 4096

/* struct pt_regs ends the stack of a task that came from user mode, before the
 * padding that a kernel with FRED leaves. Its last words: cs, flags, sp, ss. */
#define FRAME_CS 32
#define FRAME_SP 16
#define FRED_PADDING 16
/* A rule for code that takes registers off the stack looks at all of them. */
#define BELOW 256
#define USER_CS 0x33
#define USER_CS_32 0x23

struct filling {
  const struct kvmgdb_sampling *sampling;
  const struct kvmgdb_stack_area *areas;
  struct kvmgdb_sample *sample;
  size_t capacity;
  size_t length;
  struct walk kernel;
  struct walk user;
};

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Without the kernel's own tables, the vCPU's are used for both halves. */
static struct walk *walk_for(struct filling *filling, uint64_t gva) {
  bool kernel = gva >= KERNEL_HALF && filling->sampling->kernel_cr3;
  return kernel ? &filling->kernel : &filling->user;
}

static bool read_word(struct filling *filling, uint64_t gva, uint64_t *word) {
  size_t done;
  return !virtual_read(walk_for(filling, gva), gva, word, sizeof(*word), &done,
                       NULL);
}

/* Copies as much of `length` bytes as there is; NULL where there is nothing. */
static const struct kvmgdb_sample_copy *
copy(struct filling *filling, uint64_t address, uint64_t length) {
  struct kvmgdb_sample *sample = filling->sample;
  if (sample->copy_count == KVMGDB_SAMPLE_COPIES)
    return NULL;
  length = smaller(length, KVMGDB_SAMPLE_MAX_BYTES);
  length = smaller(length, filling->capacity - filling->length);
  length = smaller(length, UINT64_MAX - address);
  size_t done;
  virtual_read(walk_for(filling, address), address,
               (char *)sample + filling->length, length, &done, NULL);
  done &= ~(size_t)7;
  if (!done)
    return NULL;
  struct kvmgdb_sample_copy *made = &sample->copy[sample->copy_count++];
  *made = (struct kvmgdb_sample_copy){address, (uint32_t)done,
                                      (uint32_t)filling->length};
  filling->length += done;
  return made;
}

static bool copied_word(const struct filling *filling,
                        const struct kvmgdb_sample_copy *copy, uint64_t address,
                        uint64_t *word) {
  uint64_t offset = address - copy->address;
  if (address < copy->address || copy->length < sizeof(*word) ||
      offset > copy->length - sizeof(*word))
    return false;
  memcpy(word, (const char *)filling->sample + copy->offset + offset,
         sizeof(*word));
  return true;
}

static const struct kvmgdb_stack_area *area_of(const struct filling *filling,
                                               uint64_t sp) {
  for (uint32_t i = 0; i < filling->sampling->area_count; i++)
    if (sp >= filling->areas[i].low && sp < filling->areas[i].high)
      return &filling->areas[i];
  return NULL;
}

static uint64_t end_of_stack(const struct filling *filling, uint64_t sp) {
  uint64_t size = filling->sampling->stack_size;
  uint64_t end = size ? (sp | (size - 1)) + 1 : 0;
  return end ? end : UINT64_MAX;
}

/* Where a copy for a stack pointer begins: below it, in the same stack. */
static uint64_t begin_of_copy(const struct filling *filling,
                              const struct kvmgdb_stack_area *area,
                              uint64_t sp) {
  uint64_t low = sp & -(uint64_t)filling->sampling->stack_size;
  if (area)
    low = area->low;
  return sp - low < BELOW ? low : sp - BELOW;
}

static void copy_user(struct filling *filling, uint64_t sp) {
  if (filling->sampling->user_bytes && sp && sp < KERNEL_HALF)
    copy(filling, sp & ~UINT64_C(7), filling->sampling->user_bytes);
}

/* The registers of user mode, where the kernel was entered from it. */
static void copy_user_below(struct filling *filling,
                            const struct kvmgdb_sample_copy *copy,
                            uint64_t end) {
  static const uint64_t padding[] = {0, FRED_PADDING};
  for (size_t i = 0; i < sizeof(padding) / sizeof(padding[0]); i++) {
    uint64_t cs, sp, top = end - padding[i];
    if (copied_word(filling, copy, top - FRAME_CS, &cs) &&
        copied_word(filling, copy, top - FRAME_SP, &sp) &&
        (cs == USER_CS || cs == USER_CS_32)) {
      copy_user(filling, sp);
      return;
    }
  }
}

/* Where the task's stack ends; 0 where that is not known. */
static uint64_t top_of_task(const struct filling *filling) {
  const struct kvmgdb_sampling *sampling = filling->sampling;
  if (!sampling->stack_word)
    return 0;
  uint64_t low = filling->sample->word[sampling->stack_word - 1];
  return low >= KERNEL_HALF && low < UINT64_MAX - sampling->stack_size
             ? low + sampling->stack_size
             : 0;
}

static void copy_stacks(struct filling *filling) {
  const struct kvmgdb_sampling *sampling = filling->sampling;
  uint64_t sp = filling->sample->sp & ~UINT64_C(7);
  /* A guest without known stacks: whatever it is, what callers left is above.
   */
  if (!sampling->stack_size) {
    copy(filling, sp, sampling->kernel_bytes);
    return;
  }
  if (filling->sample->ip < KERNEL_HALF) {
    copy_user(filling, sp);
    return;
  }
  uint64_t top = top_of_task(filling);
  while (filling->sample->copy_count < KVMGDB_SAMPLE_COPIES) {
    const struct kvmgdb_stack_area *area = area_of(filling, sp);
    uint64_t begin = begin_of_copy(filling, area, sp);
    uint64_t end = area ? area->high : end_of_stack(filling, sp);
    const struct kvmgdb_sample_copy *made =
        copy(filling, begin, smaller(end - begin, sampling->kernel_bytes));
    if (!made)
      return;
    if (!area) {
      /* The entry code comes from a small stack of its own, and puts user
       * mode's registers on the task's. */
      if (top && (sp >= top || top - sp > sampling->stack_size))
        made = copy(filling, top - BELOW, BELOW), end = top;
      if (made)
        copy_user_below(filling, made, end);
      return;
    }
    if (!copied_word(filling, made, area->link, &sp) &&
        !read_word(filling, area->link, &sp))
      return;
    if (sp < KERNEL_HALF)
      return;
    sp &= ~UINT64_C(7);
  }
}

static void read_task(struct filling *filling, uint64_t current) {
  struct kvmgdb_sample *sample = filling->sample;
  const struct kvmgdb_sampling *sampling = filling->sampling;
  if (!current || !read_word(filling, current, &sample->task) ||
      sample->task < KERNEL_HALF || !sampling->word_count)
    return;
  uint32_t low = UINT32_MAX, high = 0;
  for (uint32_t i = 0; i < sampling->word_count; i++) {
    if (sampling->word_offset[i] < low)
      low = sampling->word_offset[i];
    if (sampling->word_offset[i] > high)
      high = sampling->word_offset[i];
  }
  uint8_t window[MAX_WINDOW + 8];
  size_t done = 0;
  bool together = high - low <= MAX_WINDOW &&
                  !virtual_read(&filling->kernel, sample->task + low, window,
                                high - low + 8, &done, NULL);
  for (uint32_t i = 0; i < sampling->word_count; i++) {
    uint32_t offset = sampling->word_offset[i];
    if (together)
      memcpy(&sample->word[i], window + offset - low, sizeof(sample->word[i]));
    else if (!read_word(filling, sample->task + offset, &sample->word[i]))
      sample->word[i] = 0;
  }
}

enum kvmgdb_status kvmgdb_sample_fill(
    struct kvmgdb_memory *memory, const struct kvmgdb_paging *paging,
    const struct kvmgdb_sampling *sampling,
    const struct kvmgdb_stack_area *areas, uint64_t current,
    struct kvmgdb_sample *sample, size_t capacity, struct kvmgdb_error *error) {
  if (!memory || !paging || !sampling || !sample ||
      (!areas && sampling->area_count) || capacity < sizeof(*sample) ||
      capacity > UINT32_MAX || sampling->word_count > KVMGDB_SAMPLE_WORDS ||
      sampling->stack_word > KVMGDB_SAMPLE_WORDS ||
      (sampling->stack_size & (sampling->stack_size - 1)))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct kvmgdb_paging kernel = *paging;
  kernel.cr3 = sampling->kernel_cr3;
  /* Not initialised as a whole: the walks hold page tables. */
  struct filling filling;
  filling.sampling = sampling;
  filling.areas = areas;
  filling.sample = sample;
  filling.capacity = capacity & ~(size_t)7;
  filling.length = sizeof(*sample);
  walk_begin(&filling.kernel, memory, &kernel);
  walk_begin(&filling.user, memory, paging);
  sample->copy_count = 0;
  sample->task = 0;
  memset(sample->word, 0, sizeof(sample->word));
  memset(sample->copy, 0, sizeof(sample->copy));
  if (sampling->kernel_cr3)
    read_task(&filling, current);
  copy_stacks(&filling);
  sample->size = (uint32_t)filling.length;
  return KVMGDB_OK;
}
