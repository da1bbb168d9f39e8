#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"

/*
 * Below this, one pread of /proc/PID/mem is cheaper than process_vm_readv and
 * the check after it; above, the bounce buffer of the former costs more.
 */
#define SMALL_READ 8192

/* Bits of a pagemap entry: Documentation/admin-guide/mm/pagemap.rst. */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)

static int open_proc(pid_t pid, const char *name, int flags) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
  return open(path, flags | O_CLOEXEC);
}

/* POLLIN on a pidfd: every thread has exited, reaped or not. */
static bool has_exited(const struct process *process) {
  struct pollfd poll_fd = {.fd = process->pidfd, .events = POLLIN};
  return poll(&poll_fd, 1, 0) != 0;
}

static int open_files(struct process *process) {
  process->pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
  if (process->pidfd < 0)
    return errno;
  process->mem = open_proc(process->pid, "mem", O_RDWR);
  if (process->mem < 0)
    return errno;
  process->maps = open_proc(process->pid, "maps", O_RDONLY);
  if (process->maps < 0)
    return errno;
  process->pagemap = open_proc(process->pid, "pagemap", O_RDONLY);
  if (process->pagemap < 0 && errno != ENOENT)
    return errno;
  return has_exited(process) ? ESRCH : 0;
}

enum kvmgdb_status process_open(struct process *process, pid_t pid,
                                struct kvmgdb_error *error) {
  *process = (struct process){
      .pid = pid, .pidfd = -1, .mem = -1, .maps = -1, .pagemap = -1};
  int failure = open_files(process);
  if (!failure)
    return KVMGDB_OK;
  /* /proc/PID that is not there is a process that is not there; pidfd_open
   * says EINVAL to a thread that leads no process. */
  if (failure == ENOENT || (failure == EINVAL && process->pidfd < 0))
    failure = ESRCH;
  process_close(process);
  return error_set_errno(error, failure, 0);
}

void process_close(struct process *process) {
  int *files[] = {&process->pidfd, &process->mem, &process->maps,
                  &process->pagemap};
  for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
    if (*files[i] >= 0)
      close(*files[i]);
    *files[i] = -1;
  }
}

/* What a failed or empty transfer on /proc/PID/mem means: it ends at once (0)
 * when the address space is gone, and is EIO where no memory is mapped. */
static int mem_failure(ssize_t result) {
  if (result == 0)
    return ESRCH;
  return errno == EIO ? EFAULT : errno;
}

static int read_mem(const struct process *process, uint64_t hva, void *buffer,
                    size_t length, size_t *done) {
  for (*done = 0; *done < length;) {
    ssize_t result = pread(process->mem, (char *)buffer + *done, length - *done,
                           (off_t)(hva + *done));
    if (result > 0)
      *done += (size_t)result;
    else if (result == 0 || errno != EINTR)
      return mem_failure(result);
  }
  return 0;
}

int process_write(const struct process *process, uint64_t hva,
                  const void *buffer, size_t length, size_t *done) {
  for (*done = 0; *done < length;) {
    ssize_t result = pwrite(process->mem, (const char *)buffer + *done,
                            length - *done, (off_t)(hva + *done));
    if (result > 0)
      *done += (size_t)result;
    else if (result == 0 || errno != EINTR)
      return mem_failure(result);
  }
  return 0;
}

static void advance(struct iovec *vector, size_t bytes) {
  vector->iov_base = (char *)vector->iov_base + bytes;
  vector->iov_len -= bytes;
}

/*
 * The kernel copies page by page and counts what came before a bad one, within
 * an element too (mm/process_vm_access.c; the manual promises less).
 */
static int read_vectors(const struct process *process, struct iovec *local,
                        struct iovec *remote, size_t count, size_t *done) {
  for (size_t i = 0; i < count;) {
    ssize_t result = process_vm_readv(process->pid, local + i, count - i,
                                      remote + i, count - i, 0);
    if (result <= 0)
      return result < 0 ? errno : EFAULT;
    *done += (size_t)result;
    for (size_t left = (size_t)result; left > 0;) {
      size_t step = left < remote[i].iov_len ? left : remote[i].iov_len;
      advance(&local[i], step);
      advance(&remote[i], step);
      left -= step;
      if (remote[i].iov_len == 0)
        i++;
    }
  }
  return 0;
}

int process_read(const struct process *process, struct iovec *local,
                 struct iovec *remote, size_t count, size_t *done) {
  *done = 0;
  if (count == 1 && remote->iov_len <= SMALL_READ)
    return read_mem(process, (uintptr_t)remote->iov_base, local->iov_base,
                    remote->iov_len, done);
  int failure = read_vectors(process, local, remote, count, done);
  if (!has_exited(process))
    return failure;
  *done = 0; /* what was read may be a stranger's */
  return ESRCH;
}

int process_pagemap(const struct process *process, uint64_t page, size_t count,
                    uint64_t *entries) {
  size_t length = count * sizeof(*entries);
  ssize_t result;
  do
    result = pread(process->pagemap, entries, length,
                   (off_t)(page * sizeof(*entries)));
  while (result < 0 && errno == EINTR);
  if (result < 0)
    return errno;
  if ((size_t)result == length)
    return 0;
  /* Cut short: beyond the user half of the address space, or it is gone. */
  char byte;
  size_t done;
  int failure =
      read_mem(process, page << HOST_PAGE_SHIFT, &byte, sizeof(byte), &done);
  return failure == ESRCH ? ESRCH : EFAULT;
}

bool process_page_touched(uint64_t pagemap_entry) {
  return pagemap_entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED);
}

/*
 * "start-end perms offset dev inode  name". Huge pages that no file names
 * show an inode all the same.
 */
static bool parse_area(const char *line, struct process_area *area) {
  char sharing;
  unsigned long inode;
  int name = 0;
  if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*c%*c%*c%c %*x %*x:%*x %lu %n",
             &area->start, &area->end, &sharing, &inode, &name) != 4)
    return false;
  area->anonymous =
      sharing == 'p' &&
      (inode == 0 || strncmp(line + name, "/anon_hugepage", 14) == 0);
  return true;
}

int process_find_area(const struct process *process, uint64_t hva,
                      struct process_area *area) {
  char text[16384];
  size_t have = 0;
  off_t offset = 0;
  for (;;) {
    ssize_t result =
        pread(process->maps, text + have, sizeof(text) - 1 - have, offset);
    if (result < 0 && errno == EINTR)
      continue;
    if (result < 0)
      return errno;
    if (result == 0)
      break;
    offset += result;
    have += (size_t)result;
    text[have] = '\0';
    char *line = text;
    for (char *end; (end = strchr(line, '\n')); line = end + 1) {
      *end = '\0';
      if (!parse_area(line, area) || hva < area->start)
        return EFAULT;
      if (hva < area->end)
        return 0;
    }
    have -= (size_t)(line - text);
    if (have == sizeof(text) - 1)
      return EFAULT; /* a line that long is not of this file */
    memmove(text, line, have);
  }
  return has_exited(process) ? ESRCH : EFAULT;
}
