/*
 * Samples: what a vCPU was doing at one moment, as whoever took it leaves it
 * for whoever unwinds it. kvmgdb-agent writes them into a ring in shared
 * memory; other sources write the same records into a buffer.
 *
 * A record is a struct kvmgdb_sample with the bytes of its copies behind it. It
 * never wraps: one that does not fit before the end of the ring begins at its
 * start, behind a record of state KVMGDB_SAMPLE_PADDING.
 */
#ifndef KVMGDB_SAMPLE_H
#define KVMGDB_SAMPLE_H

#include <stdint.h>

/* cffi: begin */

enum kvmgdb_sample_limit {
  KVMGDB_SAMPLE_COPIES = 4,
  KVMGDB_SAMPLE_WORDS = 8,
  KVMGDB_SAMPLE_MAX_BYTES = 65536, /* of one copy */
  KVMGDB_RING_DATA = 4096,         /* where the records begin in a ring */
};

enum kvmgdb_sample_state {
  KVMGDB_SAMPLE_PADDING = 0,
  KVMGDB_SAMPLE_RUNNING = 1, /* it executed guest code */
  KVMGDB_SAMPLE_EXITED = 2,  /* its VMM handled an exit of it: registers are
                                those of the exit */
  KVMGDB_SAMPLE_HALTED = 3,  /* it waited for an interrupt, and was let be:
                                there are no registers */
  KVMGDB_SAMPLE_STOPPED = 4, /* its VMM was stopped: likewise */
};

/* Guest memory from `address` (GVA) on. */
struct kvmgdb_sample_copy {
  uint64_t address;
  uint32_t length;
  uint32_t offset; /* from the start of the record */
};

struct kvmgdb_sample {
  uint32_t size; /* of the record in bytes, a multiple of 8 */
  uint16_t vcpu;
  uint8_t state; /* enum kvmgdb_sample_state */
  uint8_t copy_count;
  uint64_t time_ns; /* CLOCK_MONOTONIC */
  uint64_t held_ns; /* how long the vCPU stood still for it, without what its
                       thread waited for a CPU of the host meanwhile */
  uint64_t ip, sp, bp, ax, dx, di, r10, r13, cx;
  uint64_t cr0, cr3;
  uint64_t task;    /* what the task pointer pointed to, or 0 */
  uint64_t word[8]; /* KVMGDB_SAMPLE_WORDS; read from the task, or 0 */
  struct kvmgdb_sample_copy copy[4]; /* KVMGDB_SAMPLE_COPIES */
};

/* A stack that is not a task's: code that interrupts switches to it, and leaves
 * at `link` the stack pointer from before. */
struct kvmgdb_stack_area {
  uint64_t low;
  uint64_t high;
  uint64_t link;
};

/* What to read of a guest for each sample. */
struct kvmgdb_sampling {
  uint64_t kernel_cr3;   /* for the upper half; 0: the vCPU's own */
  uint32_t stack_size;   /* tasks' stacks end at its multiples; 0: not known */
  uint32_t kernel_bytes; /* of one stack of the kernel, at most */
  uint32_t user_bytes;   /* of the stack of user mode, at most */
  uint32_t word_count;
  uint32_t word_offset[8]; /* into a task, KVMGDB_SAMPLE_WORDS */
  uint32_t area_count;
  uint32_t stack_word; /* which word, counted from 1, is where the stack of the
                          task begins; 0: none */
};

/* One writer, one reader. The counters are the writer's. */
struct kvmgdb_ring {
  uint64_t capacity; /* bytes of records, a power of two */
  uint64_t head;     /* bytes ever written */
  uint64_t tail;     /* bytes ever read: the reader's */
  uint64_t rounds;   /* times that samples of all vCPUs were due and begun */
  uint64_t missed;   /* samples that were not taken because it was too late for
                        them, or the vCPU had not stopped for the one before */
  uint64_t samples;  /* records written, HALTED and STOPPED among them */
  uint64_t dropped;  /* samples for which the ring had no room */
  uint64_t failed;   /* samples whose vCPU did not stop in time */
};

/* cffi: end */

#endif
