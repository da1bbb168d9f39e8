#include "memory_slots.h"
#include "cleanup.h"
#include "maps.h"
#include "slots_guess.h"
#include "slots_kernel.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <kvmgdb/kvmgdb.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

static bool find_mapping(const struct session *session, uint64_t hva,
                         struct mapping *out) {
  scoped_stream maps = maps_open(session->pid);
  while (maps && maps_next(maps, out))
    if (hva >= out->start && hva < out->end)
      return true;
  return false;
}

static bool is_file(const struct stat *status, const struct mapping *mapping) {
  return S_ISREG(status->st_mode) && status->st_ino == mapping->inode &&
         major(status->st_dev) == mapping->device_major &&
         minor(status->st_dev) == mapping->device_minor;
}

/* The VMM's own descriptor of a file that it has mapped. */
static int find_descriptor(const struct session *session,
                           const struct mapping *mapping) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/fd", session->pid);
  scoped_directory directory = opendir(path);
  struct dirent *entry;
  while (directory && (entry = readdir(directory))) {
    struct stat status;
    if (!fstatat(dirfd(directory), entry->d_name, &status, 0) &&
        is_file(&status, mapping))
      return openat(dirfd(directory), entry->d_name, O_RDWR | O_CLOEXEC);
  }
  return -1;
}

static int open_mapping(const struct session *session,
                        const struct mapping *mapping) {
  char path[96];
  snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64,
           session->pid, mapping->start, mapping->end);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  return fd >= 0 ? fd : find_descriptor(session, mapping);
}

/* Shared memory is faster through its file, and reading a hole there with
 * pread does not allocate it, which reading through the process does. */
static void add_descriptor(const struct session *session,
                           struct region_list *list,
                           struct kvmgdb_agent_region *region) {
  struct mapping mapping;
  if (!find_mapping(session, region->hva, &mapping) ||
      mapping.flags[3] != 's' || region->size > mapping.end - region->hva)
    return;
  int fd = open_mapping(session, &mapping);
  if (fd < 0)
    return;
  region->offset = mapping.offset + (region->hva - mapping.start);
  region->descriptor = list->descriptor_count;
  list->descriptor[list->descriptor_count++] = fd;
}

static int by_gpa(const void *left, const void *right) {
  const struct kvmgdb_agent_region *a = left, *b = right;
  return (a->gpa > b->gpa) - (a->gpa < b->gpa);
}

enum kvmgdb_agent_status memory_slots_list(struct session *session,
                                           struct region_list *list,
                                           struct agent_error *error) {
  *list = (struct region_list){0};
  if (!slots_from_kernel(session, list) && !slots_guess(session, list))
    return agent_fail(error, KVMGDB_AGENT_NO_RAM, 0, -1, 0);
  qsort(list->region, (size_t)list->count, sizeof(list->region[0]), by_gpa);
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status memory_slots_find(struct session *session,
                                           struct region_list *list,
                                           struct agent_error *error) {
  enum kvmgdb_agent_status status = memory_slots_list(session, list, error);
  if (status)
    return status;
  for (int i = 0; i < list->count; i++)
    add_descriptor(session, list, &list->region[i]);
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status memory_slots_open(struct session *session,
                                           const struct region_list *list,
                                           struct agent_error *error) {
  struct kvmgdb_memory *memory;
  if (kvmgdb_memory_create(0, &memory, NULL))
    return agent_fail(error, KVMGDB_AGENT_HOST, ENOMEM, -1, 0);
  for (int i = 0; i < list->count; i++) {
    const struct kvmgdb_agent_region *region = &list->region[i];
    bool shared = region->descriptor >= 0;
    int fd = shared ? list->descriptor[region->descriptor] : session->memory_fd;
    struct kvmgdb_error failure;
    if (kvmgdb_memory_add_file(memory, region->gpa, region->size, fd,
                               shared ? region->offset : region->hva,
                               region->read_only, &failure)) {
      kvmgdb_memory_destroy(memory);
      return agent_fail(error, KVMGDB_AGENT_HOST, failure.os_error, -1, 0);
    }
  }
  kvmgdb_memory_destroy(session->guest_memory);
  session->guest_memory = memory;
  return KVMGDB_AGENT_OK;
}

void memory_slots_close(struct region_list *list) {
  for (int i = 0; i < list->descriptor_count; i++)
    close(list->descriptor[i]);
  list->descriptor_count = 0;
}
