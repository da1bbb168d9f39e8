/* The memory of another process, by host-virtual address (HVA). */
#ifndef KVMGDB_PROCESS_H
#define KVMGDB_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <kvmgdb/kvmgdb.h>

#define HOST_PAGE_SHIFT 12
#define HOST_PAGE_SIZE (UINT64_C(1) << HOST_PAGE_SHIFT)

/*
 * The three files of /proc/PID hold on to the address space that the process
 * had when they were opened: they can never lead to another process that was
 * given the same PID, nor to what execve put in its place. process_vm_readv
 * can, so its result is kept only if `pidfd` says afterwards that the process
 * still exists, which means that the PID was its own for the whole call.
 */
struct process {
  pid_t pid;
  int pidfd;
  int mem;
  int maps;
  int pagemap; /* -1 where the host kernel has no pagemap */
};

/* A virtual memory area of the process: [start, end). */
struct process_area {
  uint64_t start;
  uint64_t end;
  /* Private memory with no file behind it: what was never touched is zero. */
  bool anonymous;
};

enum kvmgdb_status process_open(struct process *process, pid_t pid,
                                struct kvmgdb_error *error);
void process_close(struct process *process);

/*
 * These return 0 or an errno: EFAULT where the process has no memory that can
 * be accessed, ESRCH when the process has gone, else as the system call says.
 * `*done` counts the bytes before the first that failed.
 *
 * process_read fills local[] from remote[], pairs of equal length; both arrays
 * are used up in the process. At most IOV_MAX pairs.
 */
int process_read(const struct process *process, struct iovec *local,
                 struct iovec *remote, size_t count, size_t *done);
int process_write(const struct process *process, uint64_t hva,
                  const void *buffer, size_t length, size_t *done);

/* Entries of /proc/PID/pagemap for `count` pages from page number `page`. */
int process_pagemap(const struct process *process, uint64_t page, size_t count,
                    uint64_t *entries);

/* Whether a page with this pagemap entry holds something, in RAM or swap. */
bool process_page_touched(uint64_t pagemap_entry);

/* The area around `hva`; EFAULT when there is none. */
int process_find_area(const struct process *process, uint64_t hva,
                      struct process_area *area);

#endif
