/*
 * A list of guest-physical pieces, cut at the borders of regions and handed to
 * their backings. What lies in the process is gathered, so that a range of
 * guest-virtual memory over many scattered pages is one system call.
 */
#include <errno.h>
#include <string.h>

#include "backing.h"
#include "error.h"
#include "memory.h"

#define BATCH 512   /* pairs in one process_vm_readv; IOV_MAX is 1024 */
#define PAGEMAP 512 /* entries looked at in one go */

/* Pages whose entries are fetched along when more pieces are to come. */
#define PAGEMAP_AHEAD 8

/* Bytes that wait for the next process_vm_readv. */
struct batch {
  size_t count;
  struct iovec local[BATCH];
  struct iovec remote[BATCH];
  struct {
    uint64_t gpa;
    size_t position; /* of its first byte in the whole transfer */
  } origin[BATCH];
};

/* A window on /proc/PID/pagemap, as it was during this transfer. */
struct residency {
  uint64_t first;
  size_t count;
  size_t ahead;
  uint64_t entry[PAGEMAP];
};

struct transfer {
  struct kvmgdb_memory *memory;
  enum direction direction;
  char *buffer;
  size_t position; /* bytes moved or queued */
  size_t done;     /* set on failure only */
  struct kvmgdb_error *error;
  struct process_area area; /* the last one that was looked up */
  struct residency residency;
  struct batch batch;
};

static enum kvmgdb_status fail(struct transfer *transfer, int os_error,
                               uint64_t gpa, size_t position) {
  transfer->done = position;
  enum kvmgdb_status status = error_set_errno(transfer->error, os_error, gpa);
  error_set_entry(transfer->error, 0, gpa);
  return status;
}

static enum kvmgdb_status flush(struct transfer *transfer) {
  struct batch *batch = &transfer->batch;
  if (batch->count == 0)
    return KVMGDB_OK;
  size_t lengths[BATCH];
  for (size_t i = 0; i < batch->count; i++)
    lengths[i] = batch->remote[i].iov_len;
  size_t done;
  int failure = process_read(&transfer->memory->process, batch->local,
                             batch->remote, batch->count, &done);
  size_t index = 0;
  while (failure && done >= lengths[index])
    done -= lengths[index++];
  batch->count = 0;
  if (!failure)
    return KVMGDB_OK;
  return fail(transfer, failure, batch->origin[index].gpa + done,
              batch->origin[index].position + done);
}

/* Queues `length` bytes, the next of the transfer. */
static enum kvmgdb_status enqueue(struct transfer *transfer, uint64_t gpa,
                                  uint64_t hva, size_t length) {
  struct batch *batch = &transfer->batch;
  char *local = transfer->buffer + transfer->position;
  if (batch->count) {
    struct iovec *last_local = &batch->local[batch->count - 1];
    struct iovec *last_remote = &batch->remote[batch->count - 1];
    uint64_t *last_gpa = &batch->origin[batch->count - 1].gpa;
    if ((uintptr_t)last_remote->iov_base + last_remote->iov_len == hva &&
        (char *)last_local->iov_base + last_local->iov_len == local &&
        *last_gpa + last_remote->iov_len == gpa) {
      last_remote->iov_len += length;
      last_local->iov_len += length;
      transfer->position += length;
      return KVMGDB_OK;
    }
  }
  if (batch->count == BATCH) {
    enum kvmgdb_status status = flush(transfer);
    if (status != KVMGDB_OK)
      return status;
  }
  size_t slot = batch->count++;
  batch->local[slot] = (struct iovec){.iov_base = local, .iov_len = length};
  batch->remote[slot] =
      (struct iovec){.iov_base = (void *)(uintptr_t)hva, .iov_len = length};
  batch->origin[slot].gpa = gpa;
  batch->origin[slot].position = transfer->position;
  transfer->position += length;
  return KVMGDB_OK;
}

/*
 * How many of the `length` bytes at `hva` are alike, as to whether a guest or
 * its VMM ever touched them.
 */
static int measure_run(struct transfer *transfer, uint64_t hva, size_t length,
                       size_t *run, bool *touched) {
  struct process *process = &transfer->memory->process;
  struct residency *known = &transfer->residency;
  uint64_t first = hva >> HOST_PAGE_SHIFT;
  uint64_t last = (hva + length - 1) >> HOST_PAGE_SHIFT;
  if (process->pagemap < 0) {
    *run = length;
    *touched = true;
    return 0;
  }
  if (first < known->first || first - known->first >= known->count) {
    uint64_t wanted = last - first + 1;
    if (wanted < known->ahead)
      wanted = known->ahead;
    if (wanted > PAGEMAP)
      wanted = PAGEMAP;
    known->count = 0;
    int failure = process_pagemap(process, first, wanted, known->entry);
    if (failure && wanted > 1) /* what lies ahead may not be user space */
      failure = process_pagemap(process, first, wanted = 1, known->entry);
    if (failure)
      return failure;
    known->first = first;
    known->count = wanted;
  }
  size_t index = first - known->first;
  *touched = process_page_touched(known->entry[index]);
  uint64_t page = first;
  do
    page++;
  while (++index < known->count && page <= last &&
         process_page_touched(known->entry[index]) == *touched);
  uint64_t end = page << HOST_PAGE_SHIFT;
  *run = end - hva < length ? end - hva : length;
  return 0;
}

/*
 * Untouched pages: zero without a look where they are anonymous. Where they
 * are a file's, only reading tells; where nothing is mapped, EFAULT.
 */
static int shorten_to_area(struct transfer *transfer, uint64_t hva, size_t *run,
                           bool *zero) {
  struct process_area *area = &transfer->area;
  if (hva < area->start || hva >= area->end) {
    int failure = process_find_area(&transfer->memory->process, hva, area);
    if (failure) {
      *area = (struct process_area){0};
      return failure;
    }
  }
  if (*run > area->end - hva)
    *run = area->end - hva;
  *zero = area->anonymous;
  return 0;
}

static enum kvmgdb_status read_process(struct transfer *transfer,
                                       const struct region *region,
                                       uint64_t gpa, size_t length) {
  while (length) {
    uint64_t hva = region->hva + (gpa - region->gpa);
    size_t run;
    bool touched, zero = false;
    int failure = measure_run(transfer, hva, length, &run, &touched);
    if (!failure && !touched)
      failure = shorten_to_area(transfer, hva, &run, &zero);
    if (failure) {
      enum kvmgdb_status status = flush(transfer);
      return status != KVMGDB_OK
                 ? status
                 : fail(transfer, failure, gpa, transfer->position);
    }
    if (zero) {
      memset(transfer->buffer + transfer->position, 0, run);
      transfer->position += run;
    } else {
      enum kvmgdb_status status = enqueue(transfer, gpa, hva, run);
      if (status != KVMGDB_OK)
        return status;
    }
    gpa += run;
    length -= run;
  }
  return KVMGDB_OK;
}

static int move_directly(struct transfer *transfer, const struct region *region,
                         uint64_t gpa, size_t length, size_t *moved) {
  char *buffer = transfer->buffer + transfer->position;
  bool read = transfer->direction == DIRECTION_READ;
  if (region->kind == REGION_FILE)
    return read ? file_read(region, gpa, buffer, length, moved)
                : file_write(region, gpa, buffer, length, moved);
  if (region->kind == REGION_CALLBACK)
    return read ? callback_read(region, gpa, buffer, length, moved)
                : callback_write(region, gpa, buffer, length, moved);
  return process_write(&transfer->memory->process,
                       region->hva + (gpa - region->gpa), buffer, length,
                       moved);
}

/* Moves what of [gpa, gpa + length) lies in one region. */
static enum kvmgdb_status move_part(struct transfer *transfer, uint64_t gpa,
                                    size_t length, size_t *part) {
  const struct region *region = memory_find(transfer->memory, gpa);
  bool inside = region && region->gpa <= gpa;
  bool refused =
      inside && transfer->direction == DIRECTION_WRITE && region->read_only;
  if (inside && !refused) {
    uint64_t left = region->size - (gpa - region->gpa);
    *part = left < length ? left : length;
    if (region->kind == REGION_PROCESS && transfer->direction == DIRECTION_READ)
      return read_process(transfer, region, gpa, *part);
  }
  enum kvmgdb_status status = flush(transfer);
  if (status != KVMGDB_OK)
    return status;
  if (!inside)
    return fail(transfer, EFAULT, gpa, transfer->position);
  if (refused) {
    transfer->done = transfer->position;
    error_set(transfer->error, KVMGDB_ERR_READ_ONLY, 0, gpa);
    error_set_entry(transfer->error, 0, gpa);
    return KVMGDB_ERR_READ_ONLY;
  }
  size_t moved = 0;
  int failure = move_directly(transfer, region, gpa, *part, &moved);
  if (failure)
    return fail(transfer, failure, gpa + moved, transfer->position + moved);
  transfer->position += *part;
  return KVMGDB_OK;
}

static enum kvmgdb_status run(struct transfer *transfer,
                              const struct piece *pieces, size_t count) {
  for (size_t i = 0; i < count; i++) {
    for (size_t moved = 0, part = 0; moved < pieces[i].length; moved += part) {
      enum kvmgdb_status status = move_part(transfer, pieces[i].gpa + moved,
                                            pieces[i].length - moved, &part);
      if (status != KVMGDB_OK)
        return status;
    }
  }
  return flush(transfer);
}

enum kvmgdb_status memory_transfer(struct kvmgdb_memory *memory,
                                   const struct piece *pieces, size_t count,
                                   enum direction direction, void *buffer,
                                   size_t *done, struct kvmgdb_error *error) {
  /* Not initialised as a whole: its arrays are many times a small read. */
  struct transfer transfer;
  transfer.memory = memory;
  transfer.direction = direction;
  transfer.buffer = buffer;
  transfer.position = 0;
  transfer.done = 0;
  transfer.error = error;
  transfer.area = (struct process_area){0};
  transfer.residency.first = 0;
  transfer.residency.count = 0;
  transfer.residency.ahead = count > 1 ? PAGEMAP_AHEAD : 1;
  transfer.batch.count = 0;
  enum kvmgdb_status status = run(&transfer, pieces, count);
  *done = status == KVMGDB_OK ? transfer.position : transfer.done;
  return status;
}
