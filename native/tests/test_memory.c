#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"
#include "harness.h"

static void destroy(struct kvmgdb_memory **memory) {
  kvmgdb_memory_destroy(*memory);
}
#define MEMORY __attribute__((cleanup(destroy))) struct kvmgdb_memory *

static struct kvmgdb_memory *create(void) {
  struct kvmgdb_memory *memory;
  CHECK_EQUAL(kvmgdb_memory_create(0, &memory, NULL), KVMGDB_OK);
  return memory;
}

static void close_file(int *fd) { close(*fd); }
#define FILE_DESCRIPTOR __attribute__((cleanup(close_file))) int

static int create_file(size_t size) {
  int fd = memfd_create("ram", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(ftruncate(fd, (off_t)size) == 0);
  return fd;
}

static enum kvmgdb_status read_at(struct kvmgdb_memory *memory, uint64_t gpa,
                                  void *buffer, size_t length, size_t *done,
                                  struct kvmgdb_error *error) {
  return kvmgdb_memory_read(memory, gpa, buffer, length, done, error);
}

TEST(memory, a_read_crosses_regions_and_ends_at_a_gap) {
  MEMORY memory = create();
  FILE_DESCRIPTOR first = create_file(0x2000);
  FILE_DESCRIPTOR second = create_file(0x2000);
  CHECK(pwrite(first, "end of the first", 16, 0x2000 - 16) == 16);
  CHECK(pwrite(second, "start of the second", 19, 0x1000) == 19);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(memory, 0x12000, 0x1000, second, 0x1000, 0, NULL),
      KVMGDB_OK);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(memory, 0x10000, 0x2000, first, 0, 0, NULL),
      KVMGDB_OK);
  char buffer[0x4000];
  size_t done;
  struct kvmgdb_error error;
  CHECK_EQUAL(read_at(memory, 0x12000 - 16, buffer, 35, &done, &error),
              KVMGDB_OK);
  CHECK(memcmp(buffer, "end of the firststart of the second", 35) == 0);
  CHECK_EQUAL(read_at(memory, 0x11000, buffer, 0x3000, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0x2000);
  CHECK_EQUAL(error.address, 0x13000);
  CHECK_EQUAL(read_at(memory, 0xffff, buffer, 1, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(error.address, 0xffff);
  kvmgdb_memory_clear(memory);
  CHECK_EQUAL(read_at(memory, 0x10000, buffer, 1, &done, &error),
              KVMGDB_ERR_NO_RAM);
}

TEST(memory, regions_that_overlap_are_refused) {
  MEMORY memory = create();
  FILE_DESCRIPTOR fd = create_file(0x1000);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0x2000, 0x1000, fd, 0, 0, NULL),
              KVMGDB_OK);
  struct {
    uint64_t gpa, size;
    enum kvmgdb_status status;
  } cases[] = {
      {0x2000, 0x1000, KVMGDB_ERR_INVALID},
      {0x2fff, 1, KVMGDB_ERR_INVALID},
      {0x1000, 0x1001, KVMGDB_ERR_INVALID},
      {0, UINT64_MAX, KVMGDB_ERR_INVALID},
      {0x2800, UINT64_MAX - 0x2800, KVMGDB_ERR_INVALID},
      {0x5000, 0, KVMGDB_ERR_INVALID},
      {UINT64_MAX, 1, KVMGDB_ERR_INVALID},
      {UINT64_MAX - 0xfff, 0x2000, KVMGDB_ERR_INVALID},
      {0x1000, 0x1000, KVMGDB_OK},
      {0x3000, 1, KVMGDB_OK},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    struct kvmgdb_error error = {0};
    CHECK_EQUAL(kvmgdb_memory_add_file(memory, cases[i].gpa, cases[i].size, fd,
                                       0, 0, &error),
                cases[i].status);
    CHECK_EQUAL(error.status, cases[i].status);
  }
}

TEST(memory, there_is_an_end_to_the_number_of_regions) {
  MEMORY memory = create();
  FILE_DESCRIPTOR fd = create_file(0x1000);
  struct kvmgdb_error error;
  /* From the highest down: each is put before all others. One descriptor each
   * would be too many where 1024 is the limit, so these have a process. */
  MEMORY of_self;
  CHECK_EQUAL(kvmgdb_memory_create(getpid(), &of_self, NULL), KVMGDB_OK);
  for (uint64_t i = 4096; i > 0; i--)
    CHECK_EQUAL(
        kvmgdb_memory_add_process(of_self, i << 12, 0x1000, 0, 0, &error),
        KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_process(of_self, 0, 0x1000, 0, 0, &error),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(error.os_error, ENOSPC);
}

TEST(memory, ranges_that_overflow_are_refused) {
  MEMORY memory = create();
  char buffer[16];
  size_t done = 1;
  CHECK_EQUAL(read_at(memory, UINT64_MAX - 3, buffer, 5, &done, NULL),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(done, 0);
  CHECK_EQUAL(read_at(memory, UINT64_MAX - 3, buffer, 4, &done, NULL),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(read_at(memory, 5, NULL, 0, &done, NULL), KVMGDB_OK);
  CHECK_EQUAL(read_at(NULL, 0, buffer, 1, &done, NULL), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_memory_write(memory, UINT64_MAX, buffer, 2, NULL, NULL),
              KVMGDB_ERR_INVALID);
  kvmgdb_memory_destroy(NULL);
  kvmgdb_memory_clear(NULL);
}

TEST(memory, a_file_has_no_ram_past_its_end_and_is_not_made_longer) {
  MEMORY memory = create();
  FILE_DESCRIPTOR fd = create_file(0x1800);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0, 0x3000, fd, 0, 0, NULL),
              KVMGDB_OK);
  char buffer[0x3000] = {0};
  size_t done;
  struct kvmgdb_error error;
  CHECK_EQUAL(read_at(memory, 0x1000, buffer, 0x1000, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0x800);
  CHECK_EQUAL(error.address, 0x1800);
  CHECK_EQUAL(
      kvmgdb_memory_write(memory, 0x1000, buffer, 0x1000, &done, &error),
      KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0x800);
  CHECK_EQUAL(error.address, 0x1800);
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0x2000, buffer, 16, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0);
  struct stat stat;
  CHECK(fstat(fd, &stat) == 0);
  CHECK_EQUAL(stat.st_size, 0x1800);
}

TEST(memory, reading_a_hole_does_not_allocate_it) {
  MEMORY memory = create();
  size_t size = 8 << 20;
  FILE_DESCRIPTOR fd = create_file(size);
  CHECK(pwrite(fd, "data", 4, 0x123000) == 4);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0, size, fd, 0, 0, NULL),
              KVMGDB_OK);
  struct stat before, after;
  CHECK(fstat(fd, &before) == 0);
  char *buffer = malloc(size);
  memset(buffer, 0xaa, size);
  size_t done;
  CHECK_EQUAL(read_at(memory, 0, buffer, size, &done, NULL), KVMGDB_OK);
  CHECK(fstat(fd, &after) == 0);
  CHECK_EQUAL(after.st_blocks, before.st_blocks);
  CHECK(before.st_blocks * 512 < 1 << 20);
  CHECK(memcmp(buffer + 0x123000, "data", 4) == 0);
  for (size_t i = 0; i < size; i++)
    if (i < 0x123000 || i >= 0x123004)
      CHECK_EQUAL(buffer[i], 0);
  free(buffer);
}

TEST(memory, the_descriptor_is_the_library_s_own) {
  MEMORY memory = create();
  int fd = create_file(0x1000);
  CHECK(pwrite(fd, "stays", 5, 0) == 5);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0, 0x1000, fd, 0, 0, NULL),
              KVMGDB_OK);
  close(fd);
  char buffer[5];
  CHECK_EQUAL(read_at(memory, 0, buffer, 5, NULL, NULL), KVMGDB_OK);
  CHECK(memcmp(buffer, "stays", 5) == 0);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0x1000, 0x1000, -1, 0, 0, NULL),
              KVMGDB_ERR_INVALID);
}

TEST(memory, read_only_regions_are_not_written) {
  MEMORY memory = create();
  FILE_DESCRIPTOR fd = create_file(0x3000);
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  FILE_DESCRIPTOR reader = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(reader >= 0);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0, 0x1000, fd, 0, 0, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(memory, 0x1000, 0x1000, fd, 0x1000, 1, NULL),
      KVMGDB_OK);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(memory, 0x2000, 0x1000, reader, 0x2000, 0, NULL),
      KVMGDB_OK);
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0xffe, "abcd", 4, &done, &error),
              KVMGDB_ERR_READ_ONLY);
  CHECK_EQUAL(done, 2);
  CHECK_EQUAL(error.address, 0x1000);
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0x2000, "abcd", 4, &done, &error),
              KVMGDB_ERR_READ_ONLY);
}

/* Memory in 16-byte pieces of its own: [0x1000, 0x5000) but for one page. */
struct owner {
  int calls;
  int answer;
  char memory[0x6000];
};

static int own_read(void *context, uint64_t gpa, void *buffer, size_t length) {
  struct owner *owner = context;
  owner->calls++;
  if (owner->answer)
    return owner->answer;
  if (gpa + length > 0x3000 && gpa < 0x4000)
    return -EFAULT;
  memcpy(buffer, owner->memory + gpa, length);
  return 0;
}

static int own_write(void *context, uint64_t gpa, const void *buffer,
                     size_t length) {
  struct owner *owner = context;
  owner->calls++;
  if (owner->answer)
    return owner->answer;
  memcpy(owner->memory + gpa, buffer, length);
  return 0;
}

TEST(memory, a_callback_is_asked_once_and_again_only_for_the_bad_page) {
  MEMORY memory = create();
  struct owner owner = {0};
  fill_pattern(owner.memory, sizeof(owner.memory), 3);
  CHECK_EQUAL(kvmgdb_memory_add_callback(memory, 0x1000, 0x4000, own_read,
                                         own_write, &owner, NULL),
              KVMGDB_OK);
  char buffer[0x4000];
  size_t done;
  struct kvmgdb_error error;
  CHECK_EQUAL(read_at(memory, 0x1800, buffer, 0x1800, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(owner.calls, 1);
  CHECK(memcmp(buffer, owner.memory + 0x1800, 0x1800) == 0);
  CHECK_EQUAL(read_at(memory, 0x1800, buffer, 0x2800, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 0x1800);
  CHECK_EQUAL(error.address, 0x3000);
  CHECK_EQUAL(owner.calls, 5);
  CHECK_EQUAL(read_at(memory, 0x3010, buffer, 16, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(owner.calls, 6);
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0x4000, "word", 4, &done, &error),
              KVMGDB_OK);
  CHECK(memcmp(owner.memory + 0x4000, "word", 4) == 0);
}

TEST(memory, what_a_callback_says_becomes_the_status) {
  MEMORY memory = create();
  struct owner owner = {0};
  CHECK_EQUAL(kvmgdb_memory_add_callback(memory, 0x1000, 0x4000, own_read, NULL,
                                         &owner, NULL),
              KVMGDB_OK);
  struct {
    int answer;
    enum kvmgdb_status status;
    int os_error;
  } cases[] = {
      {-EFAULT, KVMGDB_ERR_NO_RAM, EFAULT},
      {-ESRCH, KVMGDB_ERR_GONE, ESRCH},
      {-EACCES, KVMGDB_ERR_PERMISSION, EACCES},
      {-EPERM, KVMGDB_ERR_PERMISSION, EPERM},
      {-ENOMEM, KVMGDB_ERR_NO_MEMORY, ENOMEM},
      {-ETIMEDOUT, KVMGDB_ERR_IO, ETIMEDOUT},
      {7, KVMGDB_ERR_IO, EIO},
      {-100000, KVMGDB_ERR_IO, EIO},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    owner.answer = cases[i].answer;
    char buffer[16];
    size_t done;
    struct kvmgdb_error error;
    CHECK_EQUAL(read_at(memory, 0x1000, buffer, 16, &done, &error),
                cases[i].status);
    CHECK_EQUAL(error.status, cases[i].status);
    CHECK_EQUAL(error.os_error, cases[i].os_error);
    CHECK_EQUAL(error.address, 0x1000);
  }
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0x1000, "x", 1, NULL, NULL),
              KVMGDB_ERR_READ_ONLY);
  CHECK_EQUAL(kvmgdb_memory_add_callback(memory, 0x8000, 0x1000, NULL, NULL,
                                         NULL, NULL),
              KVMGDB_ERR_INVALID);
}

TEST(memory, hugetlbfs_is_read_and_written) {
  MEMORY memory = create();
  size_t size = 4 << 20;
  FILE_DESCRIPTOR fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
  void *mapping = MAP_FAILED;
  if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
    mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapping == MAP_FAILED)
    harness_skip("the host has no two huge pages to give: %s", strerror(errno));
  munmap(mapping, size);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, 0, size, fd, 0, 0, NULL),
              KVMGDB_OK);
  char buffer[8] = {1};
  size_t done;
  struct kvmgdb_error error;
  CHECK_EQUAL(read_at(memory, 0x1000, buffer, 8, &done, &error), KVMGDB_OK);
  CHECK_EQUAL(buffer[0], 0);
  struct stat stat;
  CHECK(fstat(fd, &stat) == 0);
  CHECK_EQUAL(stat.st_blocks, 0);
  uint64_t across = (2 << 20) - 4;
  CHECK_EQUAL(kvmgdb_memory_write(memory, across, "12345678", 8, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(read_at(memory, across, buffer, 8, &done, &error), KVMGDB_OK);
  CHECK(memcmp(buffer, "12345678", 8) == 0);
  CHECK(ftruncate(fd, 0) == 0);
  CHECK_EQUAL(kvmgdb_memory_write(memory, 0, "1", 1, &done, &error),
              KVMGDB_ERR_NO_RAM);
}
