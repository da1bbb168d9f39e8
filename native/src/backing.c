#include "backing.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * A file that ends early has no RAM there. /proc/PID/mem has no end: it gives
 * nothing once the address space is gone, and EIO where nothing is mapped.
 */
static int file_failure(const struct region *region, ssize_t result) {
  if (result == 0)
    return region->file.process_memory ? ESRCH : EFAULT;
  return region->file.process_memory && errno == EIO ? EFAULT : errno;
}

static uint64_t file_offset(const struct region *region, uint64_t gpa) {
  return region->file.offset + (gpa - region->gpa);
}

int file_read(const struct region *region, uint64_t gpa, void *buffer,
              size_t length, size_t *done) {
  uint64_t offset = file_offset(region, gpa);
  for (*done = 0; *done < length;) {
    ssize_t result = pread(region->file.fd, (char *)buffer + *done,
                           length - *done, (off_t)(offset + *done));
    if (result > 0)
      *done += (size_t)result;
    else if (result == 0 || errno != EINTR)
      return file_failure(region, result);
  }
  return 0;
}

/*
 * Through a mapping of one huge page, and by a system call on ourselves: a
 * file that shrinks under the mapping is then EFAULT, not SIGBUS.
 */
static ssize_t write_huge_page(const struct region *region, const void *buffer,
                               size_t length, uint64_t offset) {
  uint64_t page = region->file.huge_page;
  uint64_t inside = offset & (page - 1);
  if (length > page - inside)
    length = page - inside;
  void *mapping = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED,
                       region->file.fd, (off_t)(offset - inside));
  if (mapping == MAP_FAILED)
    return -1;
  struct iovec from = {.iov_base = (void *)buffer, .iov_len = length};
  struct iovec to = {.iov_base = (char *)mapping + inside, .iov_len = length};
  ssize_t result = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
  int failure = errno;
  munmap(mapping, page);
  errno = failure;
  return result;
}

/* Never makes the file longer: what lies past its end is no RAM. */
static ssize_t write_some(const struct region *region, const void *buffer,
                          size_t length, uint64_t offset) {
  if (region->file.process_memory)
    return pwrite(region->file.fd, buffer, length, (off_t)offset);
  struct stat stat;
  if (fstat(region->file.fd, &stat) < 0)
    return -1;
  if (S_ISREG(stat.st_mode)) {
    if (offset >= (uint64_t)stat.st_size)
      return 0;
    if (length > (uint64_t)stat.st_size - offset)
      length = (uint64_t)stat.st_size - offset;
  }
  if (region->file.huge_page)
    return write_huge_page(region, buffer, length, offset);
  return pwrite(region->file.fd, buffer, length, (off_t)offset);
}

int file_write(const struct region *region, uint64_t gpa, const void *buffer,
               size_t length, size_t *done) {
  uint64_t offset = file_offset(region, gpa);
  for (*done = 0; *done < length;) {
    ssize_t result = write_some(region, (const char *)buffer + *done,
                                length - *done, offset + *done);
    if (result > 0)
      *done += (size_t)result;
    else if (result == 0 || errno != EINTR)
      return file_failure(region, result);
  }
  return 0;
}

/* One call of the owner's function; a result that is no -errno is its bug. */
static int call(const struct region *region, enum direction direction,
                uint64_t gpa, void *buffer, size_t length) {
  int result =
      direction == DIRECTION_READ
          ? region->callback.read(region->callback.context, gpa, buffer, length)
          : region->callback.write(region->callback.context, gpa, buffer,
                                   length);
  if (result == 0)
    return 0;
  return result > -4096 && result < 0 ? -result : EIO;
}

/*
 * All in one call. A callback tells only that its range failed: to find the
 * byte, a range without RAM is gone through again page by page.
 */
static int call_range(const struct region *region, enum direction direction,
                      uint64_t gpa, char *buffer, size_t length, size_t *done) {
  *done = 0;
  int failure = call(region, direction, gpa, buffer, length);
  if (!failure)
    *done = length;
  if (failure != EFAULT)
    return failure;
  while (*done < length) {
    size_t step = HOST_PAGE_SIZE - ((gpa + *done) & (HOST_PAGE_SIZE - 1));
    if (step >= length)
      return EFAULT; /* that was the call above */
    if (step > length - *done)
      step = length - *done;
    failure = call(region, direction, gpa + *done, buffer + *done, step);
    if (failure)
      return failure;
    *done += step;
  }
  return 0;
}

int callback_read(const struct region *region, uint64_t gpa, void *buffer,
                  size_t length, size_t *done) {
  return call_range(region, DIRECTION_READ, gpa, buffer, length, done);
}

int callback_write(const struct region *region, uint64_t gpa,
                   const void *buffer, size_t length, size_t *done) {
  return call_range(region, DIRECTION_WRITE, gpa, (void *)buffer, length, done);
}
