/* Memory of a real child process. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../src/process.h"
#include "guest.h"
#include "harness.h"

#define PAGES 1024
#define SIZE (PAGES * HOST_PAGE_SIZE)
#define GPA UINT64_C(0x100000)

/* A child that has SIZE bytes at `start`, in which it wrote what we asked. */
struct child {
  pid_t pid;
  uint8_t *start;
  struct kvmgdb_memory *memory;
};

static bool page_is_touched(size_t page) { return page % 7 == 3; }

static uint8_t page_byte(size_t page) { return (uint8_t)(page | 1); }

static void touch_pages(uint8_t *start) {
  for (size_t page = 0; page < PAGES; page++)
    if (page_is_touched(page))
      memset(start + page * HOST_PAGE_SIZE, page_byte(page), HOST_PAGE_SIZE);
}

/* Called in a child: it ends when we do, should we die before it. */
static void end_with_parent(pid_t parent) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
    _exit(1);
}

/* The whole life of the child. */
static _Noreturn void live(uint8_t *start, void (*prepare)(uint8_t *),
                           int ready) {
  prepare(start);
  if (write(ready, "x", 1) != 1)
    _exit(1);
  for (;;)
    pause();
}

static void stop(struct child *child) {
  if (child->pid > 0) {
    kill(child->pid, SIGKILL);
    waitpid(child->pid, NULL, 0);
  }
  child->pid = 0;
}

static void end_child(struct child *child) {
  stop(child);
  kvmgdb_memory_destroy(child->memory);
  munmap(child->start, SIZE);
}
#define CHILD __attribute__((cleanup(end_child))) struct child

static pid_t fork_into(uint8_t *start, void (*prepare)(uint8_t *)) {
  int ready[2];
  CHECK(pipe(ready) == 0);
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    end_with_parent(parent);
    live(start, prepare, ready[1]);
  }
  close(ready[1]);
  char byte;
  bool started = pid > 0 && read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  if (pid > 0 && !started) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
  }
  CHECK(started);
  return pid;
}

static struct child start_child(void (*prepare)(uint8_t *)) {
  struct child child = {0};
  child.start = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(child.start != MAP_FAILED);
  CHECK(madvise(child.start, SIZE, MADV_NOHUGEPAGE) == 0);
  child.pid = fork_into(child.start, prepare);
  CHECK_EQUAL(kvmgdb_memory_create(child.pid, &child.memory, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_process(child.memory, GPA, SIZE,
                                        (uintptr_t)child.start, 0, NULL),
              KVMGDB_OK);
  return child;
}

/* How many pages of the child are in RAM or swap, by /proc/PID/pagemap. */
static size_t count_touched(const struct child *child) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)child->pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  uint64_t entries[PAGES];
  off_t offset = (off_t)((uintptr_t)child->start / HOST_PAGE_SIZE * 8);
  ssize_t got = pread(fd, entries, sizeof(entries), offset);
  close(fd);
  CHECK_EQUAL(got, sizeof(entries));
  size_t count = 0;
  for (size_t i = 0; i < PAGES; i++)
    count += entries[i] >> 62 != 0;
  return count;
}

static void check_contents(const uint8_t *buffer, size_t from, size_t length) {
  for (size_t i = 0; i < length; i++) {
    size_t page = (from + i) / HOST_PAGE_SIZE;
    CHECK_EQUAL(buffer[i], page_is_touched(page) ? page_byte(page) : 0);
  }
}

TEST(process, pages_that_were_never_touched_are_zero_and_stay_untouched) {
  CHILD child = start_child(touch_pages);
  size_t before = count_touched(&child);
  CHECK(before > 0 && before < PAGES / 2);
  static uint8_t buffer[SIZE];
  memset(buffer, 0xaa, sizeof(buffer));
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(
      kvmgdb_memory_read(child.memory, GPA, buffer, SIZE, &done, &error),
      KVMGDB_OK);
  CHECK_EQUAL(done, SIZE);
  check_contents(buffer, 0, SIZE);
  for (size_t from = 100; from < SIZE; from += 99991) {
    size_t length = from % 20000 < SIZE - from ? from % 20000 : SIZE - from;
    CHECK_EQUAL(kvmgdb_memory_read(child.memory, GPA + from, buffer, length,
                                   &done, &error),
                KVMGDB_OK);
    check_contents(buffer, from, length);
  }
  CHECK_EQUAL(count_touched(&child), before);
}

TEST(process, writing_reaches_the_process) {
  CHILD child = start_child(touch_pages);
  static uint8_t data[3 * HOST_PAGE_SIZE], buffer[3 * HOST_PAGE_SIZE];
  fill_pattern(data, sizeof(data), 9);
  size_t done;
  CHECK_EQUAL(kvmgdb_memory_write(child.memory, GPA + 0x5800, data,
                                  sizeof(data), &done, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(done, sizeof(data));
  struct iovec local = {.iov_base = buffer, .iov_len = sizeof(buffer)};
  struct iovec remote = {.iov_base = child.start + 0x5800,
                         .iov_len = sizeof(buffer)};
  CHECK_EQUAL(process_vm_readv(child.pid, &local, 1, &remote, 1, 0),
              sizeof(buffer));
  CHECK(memcmp(buffer, data, sizeof(data)) == 0);
}

static void unmap_the_middle(uint8_t *start) {
  memset(start, 0x55, SIZE);
  munmap(start + 600 * HOST_PAGE_SIZE, HOST_PAGE_SIZE);
}

TEST(process, what_lies_before_an_unmapped_page_is_read) {
  CHILD child = start_child(unmap_the_middle);
  static uint8_t buffer[SIZE];
  struct kvmgdb_error error;
  for (size_t from = 100; from < 601 * HOST_PAGE_SIZE; from += 140001) {
    size_t done;
    CHECK_EQUAL(kvmgdb_memory_read(child.memory, GPA + from, buffer,
                                   SIZE - from, &done, &error),
                KVMGDB_ERR_NO_RAM);
    CHECK_EQUAL(from + done, 600 * HOST_PAGE_SIZE);
    CHECK_EQUAL(error.address, GPA + 600 * HOST_PAGE_SIZE);
    for (size_t i = 0; i < done; i++)
      CHECK_EQUAL(buffer[i], 0x55);
  }
  size_t done;
  CHECK_EQUAL(kvmgdb_memory_write(child.memory, GPA + 600 * HOST_PAGE_SIZE - 3,
                                  "abcdef", 6, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 3);
}

static void protect_the_middle(uint8_t *start) {
  memset(start, 0x55, SIZE);
  mprotect(start + 600 * HOST_PAGE_SIZE, HOST_PAGE_SIZE, PROT_NONE);
}

TEST(process, process_vm_readv_that_stops_in_the_middle_keeps_what_it_read) {
  CHILD child = start_child(protect_the_middle);
  /* Below the pagemap: the whole range in one element, then one per page. */
  struct process process;
  CHECK_EQUAL(process_open(&process, child.pid, NULL), KVMGDB_OK);
  static uint8_t buffer[SIZE];
  struct iovec local[1000], remote[1000];
  local[0] = (struct iovec){.iov_base = buffer, .iov_len = SIZE};
  remote[0] = (struct iovec){.iov_base = child.start, .iov_len = SIZE};
  size_t done;
  CHECK_EQUAL(process_read(&process, local, remote, 1, &done), EFAULT);
  CHECK_EQUAL(done, 600 * HOST_PAGE_SIZE);
  for (size_t i = 0; i < 1000; i++) {
    local[i] = (struct iovec){.iov_base = buffer + i, .iov_len = 1};
    remote[i] = (struct iovec){.iov_base = child.start + i * HOST_PAGE_SIZE,
                               .iov_len = 1};
  }
  CHECK_EQUAL(process_read(&process, local, remote, 1000, &done), EFAULT);
  CHECK_EQUAL(done, 600);
  process_close(&process);
}

static void do_nothing(uint8_t *start) { (void)start; }

TEST(process, untouched_pages_of_a_file_are_read) {
  /* Shared memory that we wrote: never touched by the child. */
  uint8_t *shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  CHILD child = start_child(do_nothing);
  fill_pattern(shared, SIZE, 4);
  /* Forked before the child: the same place in it. */
  munmap(child.start, SIZE);
  stop(&child);
  child.start = shared;
  child.pid = fork_into(shared, do_nothing);
  kvmgdb_memory_destroy(child.memory);
  CHECK_EQUAL(kvmgdb_memory_create(child.pid, &child.memory, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_process(child.memory, GPA, SIZE,
                                        (uintptr_t)shared, 0, NULL),
              KVMGDB_OK);
  CHECK_EQUAL(count_touched(&child), 0);
  static uint8_t buffer[SIZE];
  size_t done;
  CHECK_EQUAL(kvmgdb_memory_read(child.memory, GPA, buffer, SIZE, &done, NULL),
              KVMGDB_OK);
  CHECK(memcmp(buffer, shared, SIZE) == 0);
}

TEST(process, swapped_pages_count_as_touched) {
  /* Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 61
   * of a file, 55 soft-dirty, 54:0 the frame or the place in swap. */
  CHECK(process_page_touched(UINT64_C(0x4000000000001234)));
  CHECK(process_page_touched(UINT64_C(0x8180000000001234)));
  CHECK(!process_page_touched(0));
  CHECK(!process_page_touched(UINT64_C(0x0080000000000000)));
}

TEST(process, areas_are_found_and_told_apart) {
  uint8_t *shared = mmap(NULL, 2 * HOST_PAGE_SIZE, PROT_READ,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct process process;
  CHECK_EQUAL(process_open(&process, getpid(), NULL), KVMGDB_OK);
  struct process_area area;
  CHECK_EQUAL(process_find_area(&process, (uintptr_t)shared, &area), 0);
  CHECK(!area.anonymous);
  CHECK_EQUAL(process_find_area(&process, (uintptr_t)&area, &area), 0);
  CHECK(area.anonymous); /* the stack */
  CHECK(area.start <= (uintptr_t)&area && (uintptr_t)&area < area.end);
  CHECK_EQUAL(process_find_area(&process, (uintptr_t)process_open, &area), 0);
  CHECK(!area.anonymous);
  CHECK_EQUAL(process_find_area(&process, 0, &area), EFAULT);
  CHECK_EQUAL(process_find_area(&process, INT64_MAX, &area), EFAULT);
  munmap(shared, 2 * HOST_PAGE_SIZE);
  CHECK_EQUAL(process_find_area(&process, (uintptr_t)shared, &area), EFAULT);
  process_close(&process);
}

/* A small and a large read, and a write, on a process that is not there. */
static void check_gone(struct kvmgdb_memory *memory) {
  static uint8_t buffer[SIZE];
  size_t lengths[] = {1, 64, HOST_PAGE_SIZE, 4 * HOST_PAGE_SIZE, SIZE};
  for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
    struct kvmgdb_error error = {0};
    size_t done = 1;
    CHECK_EQUAL(
        kvmgdb_memory_read(memory, GPA, buffer, lengths[i], &done, &error),
        KVMGDB_ERR_GONE);
    CHECK_EQUAL(done, 0);
    CHECK_EQUAL(error.status, KVMGDB_ERR_GONE);
    CHECK_EQUAL(
        kvmgdb_memory_write(memory, GPA, buffer, lengths[i], &done, &error),
        KVMGDB_ERR_GONE);
  }
}

TEST(process, a_process_that_exits_is_gone) {
  CHILD child = start_child(touch_pages);
  kill(child.pid, SIGKILL);
  siginfo_t info;
  CHECK(waitid(P_PID, (id_t)child.pid, &info, WEXITED | WNOWAIT) == 0);
  check_gone(child.memory); /* a zombie */
  stop(&child);
  check_gone(child.memory);
}

TEST(process, a_process_that_is_not_there_is_gone) {
  CHILD child = start_child(do_nothing);
  pid_t pid = child.pid;
  stop(&child);
  struct kvmgdb_memory *memory = NULL;
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_memory_create(pid, &memory, &error), KVMGDB_ERR_GONE);
  CHECK(memory == NULL);
  CHECK_EQUAL(kvmgdb_memory_create(-1, &memory, &error), KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_memory_create(0, &memory, &error), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_process(memory, 0, 0x1000, 0, 0, &error),
              KVMGDB_ERR_INVALID);
  kvmgdb_memory_destroy(memory);
}

/* As check_gone, below the pagemap: what process_vm_readv returned is not
 * kept, though there was something to read. */
static void check_read_is_dropped(const struct process *process,
                                  uint8_t *start) {
  static uint8_t buffer[SIZE];
  struct iovec local = {.iov_base = buffer, .iov_len = SIZE};
  struct iovec remote = {.iov_base = start, .iov_len = SIZE};
  size_t done = 1;
  CHECK_EQUAL(process_read(process, &local, &remote, 1, &done), ESRCH);
  CHECK_EQUAL(done, 0);
}

TEST(process, another_process_with_the_same_pid_is_never_read) {
  CHILD child = start_child(do_nothing);
  struct process process;
  CHECK_EQUAL(process_open(&process, child.pid, NULL), KVMGDB_OK);
  memset(child.start, 0x77, SIZE); /* what a stranger would have there */
  pid_t pid = child.pid;
  stop(&child);
  pid_t parent = getpid();
  struct clone_args arguments = {
      .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};
  pid_t stranger = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
  if (stranger == 0) {
    end_with_parent(parent);
    for (;;)
      pause();
  }
  if (stranger < 0)
    harness_skip("cannot choose a PID: %s", strerror(errno));
  child.pid = stranger; /* ended with the test */
  CHECK_EQUAL(stranger, pid);
  char byte = 0;
  struct iovec local = {.iov_base = &byte, .iov_len = 1};
  struct iovec remote = {.iov_base = child.start, .iov_len = 1};
  CHECK_EQUAL(process_vm_readv(pid, &local, 1, &remote, 1, 0), 1);
  CHECK_EQUAL(byte, 0x77); /* it can be read, by PID */
  check_gone(child.memory);
  check_read_is_dropped(&process, child.start);
  process_close(&process);
}

TEST(process, a_program_put_in_its_place_is_never_read) {
  uint8_t *start = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int go[2];
  CHECK(start != MAP_FAILED && pipe(go) == 0);
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    char byte;
    end_with_parent(parent);
    close(go[1]);
    if (read(go[0], &byte, 1) == 1)
      execl("/bin/sleep", "sleep", "60", (char *)NULL);
    _exit(1);
  }
  close(go[0]);
  CHECK(pid > 0);
  CHILD child = {.pid = pid, .start = start};
  CHECK_EQUAL(kvmgdb_memory_create(pid, &child.memory, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_process(child.memory, GPA, SIZE,
                                        (uintptr_t)start, 0, NULL),
              KVMGDB_OK);
  CHECK(write(go[1], "x", 1) == 1);
  close(go[1]);
  char path[64], name[64] = "";
  snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
  for (int i = 0; i < 500 && strcmp(name, "sleep\n") != 0; i++) {
    usleep(10000);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    ssize_t length = read(fd, name, sizeof(name) - 1);
    name[length > 0 ? length : 0] = '\0';
    close(fd);
  }
  CHECK(strcmp(name, "sleep\n") == 0);
  check_gone(child.memory);
}

#define SCATTERED UINT64_C(0xffffc90000000000)

/* Tables in a file that map `count` pages of the child, by number, in order. */
static struct guest map_scattered(struct child *child, const size_t *pages,
                                  size_t count) {
  struct guest guest = guest_create(KVMGDB_PAGING_4LEVEL, 0x100000, 0x10000);
  for (size_t i = 0; i < count; i++)
    guest_map(&guest, SCATTERED + i * HOST_PAGE_SIZE,
              GPA + pages[i] * HOST_PAGE_SIZE, 1, 0);
  CHECK_EQUAL(
      kvmgdb_memory_add_file(child->memory, 0, 0x100000, guest.fd, 0, 0, NULL),
      KVMGDB_OK);
  return guest;
}

TEST(process, a_scattered_range_is_read_in_order) {
  CHILD child = start_child(touch_pages);
  size_t pages[PAGES];
  for (size_t i = 0; i < PAGES; i++)
    pages[i] = PAGES - 1 - i;
  /* Touched neighbours with an untouched page between them. */
  size_t mixed[] = {3, 4, 4, 10, 11, 17, 5, 18, 10, 11, 12, 13};
  memcpy(pages, mixed, sizeof(mixed));
  GUEST guest = map_scattered(&child, pages, PAGES);
  static uint8_t buffer[SIZE];
  memset(buffer, 0xaa, SIZE);
  size_t done, before = count_touched(&child);
  CHECK_EQUAL(kvmgdb_virtual_read(child.memory, &guest.paging, SCATTERED + 7,
                                  buffer, SIZE - 7, &done, NULL),
              KVMGDB_OK);
  for (size_t i = 0; i < SIZE - 7; i++) {
    size_t page = pages[(i + 7) / HOST_PAGE_SIZE];
    CHECK_EQUAL(buffer[i], page_is_touched(page) ? page_byte(page) : 0);
  }
  CHECK_EQUAL(count_touched(&child), before);
}

static void touch_neighbours(uint8_t *start) {
  for (size_t page = 0; page < PAGES; page++)
    if (page != 1)
      memset(start + page * HOST_PAGE_SIZE, page_byte(page), HOST_PAGE_SIZE);
}

TEST(process, a_hole_between_neighbours_keeps_its_place) {
  CHILD child = start_child(touch_neighbours);
  size_t pages[] = {4, 1, 5};
  GUEST guest = map_scattered(&child, pages, 3);
  uint8_t buffer[3 * HOST_PAGE_SIZE];
  memset(buffer, 0xaa, sizeof(buffer));
  CHECK_EQUAL(kvmgdb_virtual_read(child.memory, &guest.paging, SCATTERED,
                                  buffer, sizeof(buffer), NULL, NULL),
              KVMGDB_OK);
  for (size_t i = 0; i < sizeof(buffer); i++) {
    size_t page = pages[i / HOST_PAGE_SIZE];
    CHECK_EQUAL(buffer[i], page == 1 ? 0 : page_byte(page));
  }
}

TEST(process, a_page_that_fails_in_a_scattered_range_is_named) {
  CHILD child = start_child(protect_the_middle);
  size_t pages[] = {7, 9, 600, 3};
  GUEST guest = map_scattered(&child, pages, 4);
  uint8_t buffer[4 * HOST_PAGE_SIZE];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(child.memory, &guest.paging, SCATTERED,
                                  buffer, sizeof(buffer), &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 2 * HOST_PAGE_SIZE);
  CHECK_EQUAL(error.address, SCATTERED + 2 * HOST_PAGE_SIZE);
  CHECK_EQUAL(error.entry, GPA + 600 * HOST_PAGE_SIZE);
}

static void unmap_untouched(uint8_t *start) {
  munmap(start + 600 * HOST_PAGE_SIZE, HOST_PAGE_SIZE);
}

TEST(process, what_is_not_mapped_is_not_taken_for_untouched) {
  CHILD child = start_child(unmap_untouched);
  static uint8_t buffer[SIZE];
  struct kvmgdb_error error;
  size_t done;
  CHECK_EQUAL(
      kvmgdb_memory_read(child.memory, GPA, buffer, SIZE, &done, &error),
      KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 600 * HOST_PAGE_SIZE);
  CHECK_EQUAL(kvmgdb_memory_read(child.memory, GPA + done + HOST_PAGE_SIZE,
                                 buffer, 100 * HOST_PAGE_SIZE, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(count_touched(&child), 0);
}

TEST(process, the_memory_file_of_a_process_works_as_a_file) {
  CHILD child = start_child(unmap_the_middle);
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/mem", (int)child.pid);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  struct kvmgdb_memory *memory;
  CHECK_EQUAL(kvmgdb_memory_create(0, &memory, NULL), KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_add_file(memory, GPA, SIZE, fd,
                                     (uintptr_t)child.start, 0, NULL),
              KVMGDB_OK);
  close(fd);
  static uint8_t buffer[SIZE];
  size_t done;
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_memory_read(memory, GPA, buffer, SIZE, &done, &error),
              KVMGDB_ERR_NO_RAM);
  CHECK_EQUAL(done, 600 * HOST_PAGE_SIZE);
  CHECK_EQUAL(kvmgdb_memory_write(memory, GPA, "abc", 3, &done, &error),
              KVMGDB_OK);
  CHECK_EQUAL(kvmgdb_memory_read(memory, GPA, buffer, 4, &done, &error),
              KVMGDB_OK);
  CHECK(memcmp(buffer, "abc\x55", 4) == 0);
  stop(&child);
  check_gone(memory);
  kvmgdb_memory_destroy(memory);
}
