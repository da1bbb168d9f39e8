/*
 * kvmgdb.profiler: taking samples of stacks, and making stacks of functions of
 * them. The contract is that of kvmgdb.h; records and what is in them are
 * hostile input.
 */
#ifndef KVMGDB_PROFILE_H
#define KVMGDB_PROFILE_H

#include <kvmgdb/kvmgdb.h>
#include <kvmgdb/linux.h>
#include <kvmgdb/sample.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

/* ---- filling in a sample ------------------------------------------------- */

/*
 * Reads what `sample`, whose registers are filled in, needs of guest memory:
 * the stacks from its stack pointer on, and what is known of the task whose
 * address lies at `current` (GVA; 0: not known). The bytes follow the sample
 * in `sample`, which has room for `capacity` bytes in all. Sets size,
 * copy_count, copy, task and word. What cannot be read is left out.
 */
enum kvmgdb_status kvmgdb_sample_fill(
    struct kvmgdb_memory *memory, const struct kvmgdb_paging *paging,
    const struct kvmgdb_sampling *sampling,
    const struct kvmgdb_stack_area *areas, uint64_t current,
    struct kvmgdb_sample *sample, size_t capacity, struct kvmgdb_error *error);

/* ---- from samples to stacks of functions -------------------------------- */

struct kvmgdb_profile;

/* Which frames to keep. */
#define KVMGDB_PROFILE_KERNEL 1
#define KVMGDB_PROFILE_USER 2

/* `unwinder` must live as long. A vCPU that is halted, or whose VMM is stopped,
 * has a stack without frames; one that is in its VMM has `exited_frame` on top.
 */
enum kvmgdb_status kvmgdb_profile_create(const struct kvmgdb_unwinder *unwinder,
                                         int flags, uint32_t exited_frame,
                                         struct kvmgdb_profile **out,
                                         struct kvmgdb_error *error);
void kvmgdb_profile_destroy(struct kvmgdb_profile *profile);

/* An address without a name. Space 0 is the kernel's, any other the user space
 * of the task whose number is one less. */
struct kvmgdb_profile_place {
  uint32_t space;
  uint64_t address;
};

/* In the number of a frame: it cannot be code, so that nothing was called from
 * there. Such return addresses are made up, and all behind them: they are left
 * out. What a vCPU executes itself is shown, as the frame without this bit. */
#define KVMGDB_PROFILE_NOT_CODE 0x80000000

/*
 * Names a place that had no name: addresses in [start, end), which holds it,
 * are in the function that the caller numbers `frame`. Those around that are
 * named already keep their names.
 */
enum kvmgdb_status kvmgdb_profile_name(struct kvmgdb_profile *profile,
                                       const struct kvmgdb_profile_place *place,
                                       uint64_t start, uint64_t end,
                                       uint32_t frame,
                                       struct kvmgdb_error *error);

/* From now on `unwinder` is used, and kernel code outside [start, end) has no
 * name any more: modules have come or gone. */
enum kvmgdb_status kvmgdb_profile_renew(struct kvmgdb_profile *profile,
                                        const struct kvmgdb_unwinder *unwinder,
                                        uint64_t start, uint64_t end,
                                        struct kvmgdb_error *error);

struct kvmgdb_profiled {
  uint64_t time_ns;
  uint64_t held_ns;
  uint32_t vcpu;
  uint32_t state; /* enum kvmgdb_sample_state */
  uint32_t stack;
  uint32_t task;
  int broken;       /* the kernel's part of the stack has no end */
  int end;          /* enum kvmgdb_unwind_end, 0: there was nothing to unwind */
  uint64_t address; /* where it broke, as in kvmgdb_unwind_result */
  uint64_t ip;      /* of the sample, as is: */
  uint64_t cr3;
};

/*
 * Takes records from `data`: *consumed is how many bytes, *count how many
 * samples were put into `out`. It ends early at a sample with addresses that
 * have no name yet: these are in `places` (*place_count of at most
 * `place_capacity`, which must be 1024 or more) to be named before the next
 * call. A record that is none is MALFORMED.
 */
enum kvmgdb_status
kvmgdb_profile_take(struct kvmgdb_profile *profile, const void *data,
                    size_t length, struct kvmgdb_profiled *out, size_t capacity,
                    size_t *count, size_t *consumed,
                    struct kvmgdb_profile_place *places, size_t place_capacity,
                    size_t *place_count, struct kvmgdb_error *error);

/* A stack by its number: frames from the root to the innermost, valid until
 * the next call of kvmgdb_profile_take. */
enum kvmgdb_status kvmgdb_profile_stack(const struct kvmgdb_profile *profile,
                                        uint32_t stack, const uint32_t **frames,
                                        size_t *count,
                                        struct kvmgdb_error *error);

/* A task by its number: its address, KVMGDB_SAMPLE_WORDS words of it, and the
 * CR3 with which it was first seen. */
enum kvmgdb_status kvmgdb_profile_task(const struct kvmgdb_profile *profile,
                                       uint32_t task, uint64_t *address,
                                       uint64_t *words, uint64_t *cr3,
                                       struct kvmgdb_error *error);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
