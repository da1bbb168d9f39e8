// Runs before the guest's init: says through QEMU's debug console what this
// kernel says of itself, loads the modules that it finds in /modules, leaves a
// few processes asleep in known places, and then becomes /init. With
// KVMGDB_GENERATE=1 the kernel has to generate code before that, and with
// KVMGDB_STACKS=1 it prints the stacks of all CPUs from then on.
//
// Each file goes out as "file NAME SIZE\n" and its bytes; "end\n" is the last.

#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/time_types.h>

#define DEBUG_CONSOLE 0xe9
#define BUFFER_SIZE (16ul << 20)
#define SYSLOG_ACTION_READ_ALL 3

static char buffer[BUFFER_SIZE];

static long call(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return result;
}

static unsigned long length(const char *text) {
  unsigned long n = 0;
  while (text[n])
    n++;
  return n;
}

static void put(const char *data, unsigned long size) {
  __asm__ volatile("rep outsb"
                   : "+S"(data), "+c"(size)
                   : "d"(DEBUG_CONSOLE)
                   : "memory");
}

static void put_text(const char *text) { put(text, length(text)); }

static void put_number(unsigned long value) {
  char digits[20];
  unsigned long n = sizeof(digits);
  do {
    digits[--n] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  put(digits + n, sizeof(digits) - n);
}

static void put_content(const char *name, long size) {
  put_text("file ");
  put_text(name);
  put_text(" ");
  put_number(size < 0 ? 0 : (unsigned long)size);
  put_text("\n");
  if (size > 0)
    put(buffer, (unsigned long)size);
}

// Into the buffer.
static long read_file(const char *path) {
  long total = 0, done;
  long fd = call(__NR_open, (long)path, O_RDONLY, 0, 0);
  while (fd >= 0 && total < (long)BUFFER_SIZE &&
         (done = call(__NR_read, fd, (long)buffer + total,
                      (long)BUFFER_SIZE - total, 0)) > 0)
    total += done;
  if (fd >= 0)
    call(__NR_close, fd, 0, 0, 0);
  return total;
}

static void put_file(const char *path) { put_content(path, read_file(path)); }

#include "programs.h"

static void mount(const char *type, const char *where) {
  call(__NR_mkdir, (long)where, 0755, 0, 0);
  call(__NR_mount, (long)type, (long)where, (long)type, 0);
}

// Modules are /modules/0, 1, ... in the order in which they can be loaded.
static void load_modules(void) {
  for (char name[] = "/modules/0"; name[9] <= '9'; name[9]++) {
    long fd = call(__NR_open, (long)name, O_RDONLY, 0, 0);
    if (fd < 0)
      return;
    put_content(name, -call(__NR_finit_module, fd, (long)"", 0, 0));
    call(__NR_close, fd, 0, 0, 0);
  }
}

static void sleep_in_nanosleep(void) {
  struct __kernel_timespec time = {.tv_sec = 1000000};
  call(__NR_nanosleep, (long)&time, 0, 0, 0);
}

static void sleep_in_pause(void) { call(__NR_pause, 0, 0, 0, 0); }

static void sleep_in_pipe(void) {
  int ends[2];
  char byte;
  call(__NR_pipe2, (long)ends, 0, 0, 0);
  call(__NR_read, ends[0], (long)&byte, 1, 0);
}

static void sleep_in_wait(void) {
  if (call(__NR_fork, 0, 0, 0, 0) == 0)
    sleep_in_pause();
  call(__NR_wait4, -1, 0, 0, 0);
}

static const struct sleeper {
  const char *name;
  void (*sleep)(void);
} sleepers[] = {{"in nanosleep", sleep_in_nanosleep},
                {"in (pause)", sleep_in_pause},
                {"in-pipe", sleep_in_pipe},
                {"in wait", sleep_in_wait}};

enum { CROWD = 150 };

enum { SLEEPERS = sizeof(sleepers) / sizeof(sleepers[0]) };

static void start_sleepers(void) {
  for (int i = 0; i < SLEEPERS; i++)
    if (call(__NR_fork, 0, 0, 0, 0) == 0) {
      call(__NR_prctl, PR_SET_NAME, (long)sleepers[i].name, 0, 0);
      sleepers[i].sleep();
    }
}

// As many tasks as a guest has that does something.
static void start_crowd(void) {
  for (int i = 0; i < CROWD; i++)
    if (call(__NR_fork, 0, 0, 0, 0) == 0)
      sleep_in_pause();
}

// Has all CPUs print their stacks, again and again.
static void start_stack_dumps(void) {
  struct __kernel_timespec time = {.tv_sec = 5};
  if (call(__NR_fork, 0, 0, 0, 0) != 0)
    return;
  call(__NR_unshare, CLONE_NEWNS, 0, 0, 0);
  for (;; time.tv_sec = 2) {
    call(__NR_nanosleep, (long)&time, 0, 0, 0);
    write_file("/proc/sysrq-trigger", "l");
  }
}

static void put_process_file(long pid, const char *file) {
  char path[64] = "/proc/";
  char digits[20];
  unsigned long n = sizeof(digits), at = 6;
  for (; pid; pid /= 10)
    digits[--n] = (char)('0' + pid % 10);
  while (n < sizeof(digits))
    path[at++] = digits[n++];
  path[at++] = '/';
  do
    path[at++] = *file;
  while (*file++);
  put_file(path);
}

__attribute__((noreturn, used)) static void probe(long *stack) {
  char **arguments = (char **)(stack + 1);
  char **environment = arguments + stack[0] + 1;
  call(__NR_iopl, 3, 0, 0, 0);
  mount("proc", "/proc");
  mount("sysfs", "/sys");
  mount("tracefs", "/tracing");
  load_modules();
  // Those that sleep keep what has been loaded.
  for (char **word = environment; *word; word++)
    if (same(*word, "KVMGDB_GENERATE=1"))
      generate_code();
    else if (same(*word, "KVMGDB_CROWD=1"))
      start_crowd();
    else if (same(*word, "KVMGDB_STACKS=1"))
      start_stack_dumps();
  start_sleepers();
  struct __kernel_timespec settle = {.tv_nsec = 300000000};
  call(__NR_nanosleep, (long)&settle, 0, 0, 0);
  put_file("/proc/version");
  put_file("/proc/cmdline");
  put_file("/proc/modules");
  put_file("/proc/meminfo");
  for (long pid = 1; pid < 300; pid++) {
    put_process_file(pid, "stat");
    put_process_file(pid, "stack");
  }
  put_content("log", call(__NR_syslog, SYSLOG_ACTION_READ_ALL, (long)buffer,
                          BUFFER_SIZE, 0));
  put_file("/proc/kallsyms");
  put_text("end\n");
  call(__NR_umount2, (long)"/proc", 0, 0, 0);
  call(__NR_umount2, (long)"/sys", 0, 0, 0);
  arguments[0] = "/init";
  call(__NR_execve, (long)"/init", (long)arguments, (long)environment, 0);
  __builtin_unreachable();
}

__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call probe\n");
