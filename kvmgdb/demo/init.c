// The first process of the demo's guest: no libc, no SSE, static.
//
// It starts a few named workers that compute, fault and make system calls,
// counts what they do, and answers one-line commands on the serial console:
//
//   progress [TAG]  the counter
//   kallsyms NAME   a symbol's address and type, as the guest's kernel says
//   cat PATH        a file, then "end" and the number of bytes (or -errno)
//   insmod PATH     loads a module, then "end" and 0 or -errno
//   rmmod NAME      unloads it, likewise
//
// Every line that it prints itself starts with "kvmgdb-guest: "; a command is
// repeated before its answer, so that whoever asks knows the answer as theirs.
// KVMGDB_LOAD=busy on the kernel's command line (which the kernel hands to us
// as environment) makes the workers compute without pause.

#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/time_types.h>

#define CONSOLE_BY_USER_ONLY 1
#define SYSLOG_ACTION_CONSOLE_LEVEL 8
#define REPORT_NS 1000000000ll

struct counters {
  volatile unsigned long work[4];
};

static struct counters *counters;
static int busy;

static long syscall6(long number, long a, long b, long c, long d, long e,
                     long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8),
                     "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static long syscall3(long number, long a, long b, long c) {
  return syscall6(number, a, b, c, 0, 0, 0);
}

static unsigned long length(const char *text) {
  unsigned long n = 0;
  while (text[n])
    n++;
  return n;
}

// The words of a line: whether `line` starts with `word` and a space or its
// end; returns what follows, or null.
static const char *after(const char *line, const char *word) {
  while (*word && *line == *word)
    line++, word++;
  if (*word || (*line && *line != ' '))
    return 0;
  return *line ? line + 1 : line;
}

static void write_all(const char *data, unsigned long size) {
  while (size) {
    long done = syscall3(__NR_write, 1, (long)data, (long)size);
    if (done <= 0)
      return;
    data += done;
    size -= (unsigned long)done;
  }
}

static void print(const char *text) { write_all(text, length(text)); }

static void print_number(unsigned long value) {
  char digits[20];
  unsigned long n = sizeof(digits);
  do {
    digits[--n] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  write_all(digits + n, sizeof(digits) - n);
}

static void print_counter(const char *what) {
  unsigned long sum = 0;
  for (int i = 0; i < 4; i++)
    sum += counters->work[i];
  print("kvmgdb-guest: ");
  print(what);
  print(" ");
  print_number(sum);
  print("\n");
}

static void sleep_ns(long long ns) {
  struct __kernel_timespec time = {.tv_sec = ns / 1000000000,
                                   .tv_nsec = ns % 1000000000};
  syscall3(__NR_nanosleep, (long)&time, 0, 0);
}

// ---- the workers

static void compute(void) {
  volatile unsigned long sum = 1;
  for (int i = 0; i < 20000; i++)
    sum = sum * 6364136223846793005ul + 1442695040888963407ul;
}

static void call(void) {
  for (int i = 0; i < 100; i++)
    syscall3(__NR_getppid, 0, 0, 0);
}

static void fault(void) {
  long pages = syscall6(__NR_mmap, 0, 16 * 4096, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages < 0 && pages > -4096)
    return;
  for (int i = 0; i < 16; i++)
    ((volatile char *)pages)[i * 4096] = 1;
  syscall3(__NR_munmap, pages, 16 * 4096, 0);
}

static void talk(void) {
  int ends[2];
  char byte = 0;
  if (syscall3(__NR_pipe2, (long)ends, 0, 0) != 0)
    return;
  syscall3(__NR_write, ends[1], (long)&byte, 1);
  syscall3(__NR_read, ends[0], (long)&byte, 1);
  syscall3(__NR_close, ends[0], 0, 0);
  syscall3(__NR_close, ends[1], 0, 0);
}

struct worker {
  const char *name;
  void (*work)(void);
};

static const struct worker workers[] = {{"compute", compute},
                                        {"syscalls", call},
                                        {"faults", fault},
                                        {"pipes", talk}};

static void start(int index) {
  if (syscall3(__NR_fork, 0, 0, 0) != 0)
    return;
  syscall3(__NR_prctl, PR_SET_NAME, (long)workers[index].name, 0);
  for (;;) {
    workers[index].work();
    counters->work[index]++;
    if (!busy)
      sleep_ns(2000000);
  }
}

// ---- the commands

struct reader {
  int fd;
  long available;
  long next;
  char data[4096];
};

static int next_byte(struct reader *reader) {
  if (reader->next == reader->available) {
    reader->available = syscall3(__NR_read, reader->fd, (long)reader->data,
                                 sizeof(reader->data));
    reader->next = 0;
    if (reader->available <= 0) {
      reader->available = 0;
      return -1;
    }
  }
  return (unsigned char)reader->data[reader->next++];
}

// Reads a line without its end, cut to `size` bytes; returns 0 at the end.
static int read_line(struct reader *reader, char *line, unsigned long size) {
  unsigned long used = 0;
  int byte;
  while ((byte = next_byte(reader)) >= 0 && byte != '\n')
    if (used + 1 < size)
      line[used++] = (char)byte;
  line[used] = 0;
  return byte >= 0;
}

// Lines of /proc/kallsyms: 16 digits, space, type, space, name, and for a
// module's symbol a tab and the module.
static void command_kallsyms(const char *name) {
  enum { NAME_COLUMN = 19 };
  static struct reader reader;
  char line[256];
  reader.fd = (int)syscall3(__NR_open, (long)"/proc/kallsyms", O_RDONLY, 0);
  reader.next = reader.available = 0;
  print("kvmgdb-guest: kallsyms ");
  print(name);
  while (read_line(&reader, line, sizeof(line))) {
    if (length(line) <= NAME_COLUMN)
      continue;
    for (char *end = line + NAME_COLUMN; *end; end++)
      if (*end == '\t')
        *end = ' ';
    if (after(line + NAME_COLUMN, name)) {
      print(" ");
      write_all(line, NAME_COLUMN - 1);
      break;
    }
  }
  print("\n");
  syscall3(__NR_close, reader.fd, 0, 0);
}

static void print_end(long result) {
  print("\nkvmgdb-guest: end ");
  if (result < 0)
    print("-");
  print_number((unsigned long)(result < 0 ? -result : result));
  print("\n");
}

static void command_cat(const char *path) {
  static char data[4096];
  unsigned long total = 0;
  long fd = syscall3(__NR_open, (long)path, O_RDONLY, 0);
  long done = fd;
  while (fd >= 0 &&
         (done = syscall3(__NR_read, fd, (long)data, sizeof(data))) > 0) {
    write_all(data, (unsigned long)done);
    total += (unsigned long)done;
  }
  if (fd >= 0)
    syscall3(__NR_close, fd, 0, 0);
  print_end(done < 0 ? done : (long)total);
}

static void command_insmod(const char *path) {
  long fd = syscall3(__NR_open, (long)path, O_RDONLY, 0);
  long result = fd;
  if (fd >= 0) {
    result = syscall3(__NR_finit_module, fd, (long)"", 0);
    syscall3(__NR_close, fd, 0, 0);
  }
  print_end(result);
}

static void obey(const char *line) {
  const char *argument;
  print("kvmgdb-guest: > ");
  print(line);
  print("\n");
  if ((argument = after(line, "progress"))) {
    print_counter("progress");
  } else if ((argument = after(line, "kallsyms"))) {
    command_kallsyms(argument);
  } else if ((argument = after(line, "cat"))) {
    command_cat(argument);
  } else if ((argument = after(line, "insmod"))) {
    command_insmod(argument);
  } else if ((argument = after(line, "rmmod"))) {
    print_end(syscall3(__NR_delete_module, (long)argument, O_NONBLOCK, 0));
  } else {
    print("kvmgdb-guest: unknown command\n");
  }
}

static long long now_ns(void) {
  struct __kernel_timespec time = {0};
  syscall3(__NR_clock_gettime, 1, (long)&time, 0);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void serve_console(void) {
  static struct reader console;
  char line[256];
  long long due = now_ns() + REPORT_NS;
  for (;;) {
    long long left = due - now_ns();
    if (left <= 0) {
      print_counter("alive");
      due = now_ns() + REPORT_NS;
      continue;
    }
    struct pollfd poll = {.fd = 0, .events = POLLIN};
    if (syscall3(__NR_poll, (long)&poll, 1, (long)(left / 1000000 + 1)) <= 0)
      continue;
    if (read_line(&console, line, sizeof(line)))
      obey(line);
  }
}

static void open_console(void) {
  struct termios mode = {0};
  long fd = syscall3(__NR_open, (long)"/dev/ttyS0", O_RDWR | O_NOCTTY, 0);
  for (int i = 0; i < 3 && fd >= 0; i++)
    if (fd != i)
      syscall3(__NR_dup2, fd, i, 0);
  if (syscall3(__NR_ioctl, 0, TCGETS, (long)&mode) == 0) {
    mode.c_iflag = 0;
    mode.c_oflag = 0;
    mode.c_lflag = ICANON; // a read returns one line
    syscall3(__NR_ioctl, 0, TCSETS, (long)&mode);
  }
}

static void mount(const char *type, const char *where) {
  syscall3(__NR_mkdir, (long)where, 0755, 0);
  syscall6(__NR_mount, (long)type, (long)where, (long)type, 0, 0, 0);
}

__attribute__((noreturn, used)) static void guest_main(long *stack) {
  // The stack of a new process: argc, argv, null, environment, null.
  char **environment = (char **)(stack + 1 + stack[0] + 1);
  for (; *environment; environment++)
    if (after(*environment, "KVMGDB_LOAD=busy"))
      busy = 1;

  mount("proc", "/proc");
  mount("sysfs", "/sys");
  mount("devtmpfs", "/dev");
  open_console();
  counters =
      (struct counters *)syscall6(__NR_mmap, 0, 4096, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  // The kernel's own messages stay out of our lines.
  syscall3(__NR_syslog, SYSLOG_ACTION_CONSOLE_LEVEL, 0, CONSOLE_BY_USER_ONLY);
  for (int i = 0; i < 4; i++)
    start(i);
  print("\nkvmgdb-guest: ready\n");
  serve_console();
  __builtin_unreachable();
}

__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call guest_main\n");
