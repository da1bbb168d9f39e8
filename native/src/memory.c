#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cleanup.h"
#include "error.h"

#define MAX_REGIONS 4096

enum kvmgdb_status kvmgdb_memory_create(pid_t pid, struct kvmgdb_memory **out,
                                        struct kvmgdb_error *error) {
  if (!out || pid < 0)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  SCOPED_FREE struct kvmgdb_memory *memory = calloc(1, sizeof(*memory));
  if (!memory)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, ENOMEM, 0);
  if (pid) {
    enum kvmgdb_status status = process_open(&memory->process, pid, error);
    if (status != KVMGDB_OK)
      return status;
    memory->has_process = true;
  }
  *out = memory;
  memory = NULL;
  return KVMGDB_OK;
}

void kvmgdb_memory_clear(struct kvmgdb_memory *memory) {
  if (!memory)
    return;
  for (size_t i = 0; i < memory->count; i++)
    if (memory->regions[i].kind == REGION_FILE)
      close(memory->regions[i].file.fd);
  memory->count = 0;
}

void kvmgdb_memory_destroy(struct kvmgdb_memory *memory) {
  if (!memory)
    return;
  kvmgdb_memory_clear(memory);
  if (memory->has_process)
    process_close(&memory->process);
  free(memory->regions);
  free(memory);
}

/* Index of the first region that ends above `gpa`. */
static size_t find_index(const struct kvmgdb_memory *memory, uint64_t gpa) {
  size_t low = 0, high = memory->count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    const struct region *region = &memory->regions[middle];
    if (region->gpa + region->size <= gpa)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

const struct region *memory_find(const struct kvmgdb_memory *memory,
                                 uint64_t gpa) {
  size_t index = find_index(memory, gpa);
  return index < memory->count ? &memory->regions[index] : NULL;
}

static bool reserve_one(struct kvmgdb_memory *memory) {
  if (memory->count < memory->capacity)
    return true;
  size_t capacity = memory->capacity ? memory->capacity * 2 : 16;
  struct region *regions =
      realloc(memory->regions, capacity * sizeof(*regions));
  if (!regions)
    return false;
  memory->regions = regions;
  memory->capacity = capacity;
  return true;
}

/* The checks that are the same for every backing; `*index` is its place. */
static enum kvmgdb_status make_room(struct kvmgdb_memory *memory, uint64_t gpa,
                                    uint64_t size, size_t *index,
                                    struct kvmgdb_error *error) {
  /* An end of 2^64 is refused too: sums with it stay within 64 bits. */
  if (!memory || size == 0 || size > UINT64_MAX - gpa)
    return error_set(error, KVMGDB_ERR_INVALID, 0, gpa);
  *index = find_index(memory, gpa);
  if (*index < memory->count && memory->regions[*index].gpa < gpa + size)
    return error_set(error, KVMGDB_ERR_INVALID, EEXIST, gpa);
  if (memory->count == MAX_REGIONS)
    return error_set(error, KVMGDB_ERR_INVALID, ENOSPC, gpa);
  if (!reserve_one(memory))
    return error_set(error, KVMGDB_ERR_NO_MEMORY, ENOMEM, gpa);
  return KVMGDB_OK;
}

static void insert(struct kvmgdb_memory *memory, size_t index,
                   struct region region) {
  memmove(&memory->regions[index + 1], &memory->regions[index],
          (memory->count - index) * sizeof(region));
  memory->regions[index] = region;
  memory->count++;
}

enum kvmgdb_status kvmgdb_memory_add_process(struct kvmgdb_memory *memory,
                                             uint64_t gpa, uint64_t size,
                                             uint64_t hva, int read_only,
                                             struct kvmgdb_error *error) {
  size_t index;
  enum kvmgdb_status status = make_room(memory, gpa, size, &index, error);
  if (status != KVMGDB_OK)
    return status;
  /* A host-virtual address is a file offset in /proc/PID/mem: signed. */
  if (!memory->has_process || hva > INT64_MAX || size > INT64_MAX - hva)
    return error_set(error, KVMGDB_ERR_INVALID, 0, gpa);
  insert(memory, index,
         (struct region){.gpa = gpa,
                         .size = size,
                         .kind = REGION_PROCESS,
                         .read_only = read_only,
                         .hva = hva});
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_memory_add_file(struct kvmgdb_memory *memory,
                                          uint64_t gpa, uint64_t size, int fd,
                                          uint64_t offset, int read_only,
                                          struct kvmgdb_error *error) {
  size_t index;
  enum kvmgdb_status status = make_room(memory, gpa, size, &index, error);
  if (status != KVMGDB_OK)
    return status;
  if (offset > INT64_MAX || size > INT64_MAX - offset)
    return error_set(error, KVMGDB_ERR_INVALID, 0, gpa);
  struct statfs filesystem;
  if (fstatfs(fd, &filesystem) < 0)
    return error_set(error, KVMGDB_ERR_INVALID, errno, gpa);
  if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
    read_only = 1;
  int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own_fd < 0)
    return error_set_errno(error, errno, gpa);
  bool huge = filesystem.f_type == HUGETLBFS_MAGIC;
  insert(memory, index,
         (struct region){
             .gpa = gpa,
             .size = size,
             .kind = REGION_FILE,
             .read_only = read_only,
             .file = {.fd = own_fd,
                      .process_memory = filesystem.f_type == PROC_SUPER_MAGIC,
                      .huge_page = huge ? (uint64_t)filesystem.f_bsize : 0,
                      .offset = offset}});
  return KVMGDB_OK;
}

enum kvmgdb_status kvmgdb_memory_add_callback(struct kvmgdb_memory *memory,
                                              uint64_t gpa, uint64_t size,
                                              kvmgdb_read_fn read,
                                              kvmgdb_write_fn write,
                                              void *context,
                                              struct kvmgdb_error *error) {
  size_t index;
  enum kvmgdb_status status = make_room(memory, gpa, size, &index, error);
  if (status != KVMGDB_OK)
    return status;
  if (!read)
    return error_set(error, KVMGDB_ERR_INVALID, 0, gpa);
  insert(memory, index,
         (struct region){
             .gpa = gpa,
             .size = size,
             .kind = REGION_CALLBACK,
             .read_only = !write,
             .callback = {.read = read, .write = write, .context = context}});
  return KVMGDB_OK;
}

/* The argument checks that reading and writing share. */
static enum kvmgdb_status transfer_range(struct kvmgdb_memory *memory,
                                         uint64_t gpa, enum direction direction,
                                         void *buffer, size_t length,
                                         size_t *done,
                                         struct kvmgdb_error *error) {
  size_t unused;
  if (!done)
    done = &unused;
  *done = 0;
  if (!memory || (!buffer && length) || !range_is_valid(gpa, length))
    return error_set(error, KVMGDB_ERR_INVALID, 0, gpa);
  struct piece piece = {.gpa = gpa, .length = length};
  return memory_transfer(memory, &piece, 1, direction, buffer, done, error);
}

enum kvmgdb_status kvmgdb_memory_read(struct kvmgdb_memory *memory,
                                      uint64_t gpa, void *buffer, size_t length,
                                      size_t *done,
                                      struct kvmgdb_error *error) {
  return transfer_range(memory, gpa, DIRECTION_READ, buffer, length, done,
                        error);
}

enum kvmgdb_status kvmgdb_memory_write(struct kvmgdb_memory *memory,
                                       uint64_t gpa, const void *buffer,
                                       size_t length, size_t *done,
                                       struct kvmgdb_error *error) {
  return transfer_range(memory, gpa, DIRECTION_WRITE, (void *)buffer, length,
                        done, error);
}
