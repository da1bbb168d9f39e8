/*
 * Moving bytes to and from a file or a callback. Each returns 0 or an errno,
 * with EFAULT where there is no RAM and ESRCH when its owner has gone; `*done`
 * counts the bytes before the first that failed.
 */
#ifndef KVMGDB_BACKING_H
#define KVMGDB_BACKING_H

#include "memory.h"

int file_read(const struct region *region, uint64_t gpa, void *buffer,
              size_t length, size_t *done);
int file_write(const struct region *region, uint64_t gpa, const void *buffer,
               size_t length, size_t *done);
int callback_read(const struct region *region, uint64_t gpa, void *buffer,
                  size_t length, size_t *done);
int callback_write(const struct region *region, uint64_t gpa,
                   const void *buffer, size_t length, size_t *done);

#endif
