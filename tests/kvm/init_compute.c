// The only program of a Linux guest that must run where KVM interprets guest
// code: no libc, no SSE, and after its last line no system call.
//
// It says on the console where a few things are, starts workers, prints
// "compute: ready", and from then on it and they only count:
//
//   compute: symbol ADDRESS NAME   of /proc/kallsyms
//   compute: counters GPA          of an array of u64: [0] of this process,
//                                  [i] of the worker "compute-i"
//   compute: failed NAME           what could not be done; then it stops there
//
// The array is at COUNTERS in each process.

#include <asm/ioctls.h>
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>

#define COUNTERS 0x10000000ul
#define WORKERS 3
#define PAGE 4096ul
#define PAGEMAP_PRESENT (1ul << 63)
#define PAGEMAP_PFN ((1ul << 55) - 1)
#define SYSLOG_ACTION_CONSOLE_LEVEL 8
#define CONSOLE_BY_USER_ONLY 1
#define LINE 512

// Lines of /proc/kallsyms: 16 digits, space, type, space, name.
#define NAME_COLUMN 19

static const char *const wanted[] = {
    "_text",
    "_end",
    "linux_banner",
    "jiffies_64",
    "tick_do_timer_cpu",
    "asm_sysvec_apic_timer_interrupt",
};

static volatile unsigned long *const counters = (unsigned long *)COUNTERS;

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

static int equal(const char *a, const char *b) {
  while (*a && *a == *b)
    a++, b++;
  return *a == *b;
}

static void print(const char *text) {
  syscall3(__NR_write, 1, (long)text, (long)length(text));
}

static void print_hex(unsigned long value) {
  char digits[17];
  for (int i = 0; i < 16; i++)
    digits[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
  digits[16] = 0;
  print(digits);
}

__attribute__((noreturn)) static void compute(int index) {
  for (;;)
    counters[index]++;
}

__attribute__((noreturn)) static void fail(const char *what) {
  print("compute: failed ");
  print(what);
  print("\n");
  for (;;)
    syscall3(__NR_pause, 0, 0, 0);
}

static void tell_symbol(char *line) {
  char *name = line + NAME_COLUMN;
  for (unsigned long i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
    if (!equal(name, wanted[i]))
      continue;
    line[16] = 0;
    print("compute: symbol ");
    print(line);
    print(" ");
    print(name);
    print("\n");
  }
}

static void tell_symbols(void) {
  static char data[65536];
  char line[LINE];
  unsigned long used = 0;
  long fd = syscall3(__NR_open, (long)"/proc/kallsyms", O_RDONLY, 0);
  if (fd < 0)
    fail("kallsyms");
  long size;
  while ((size = syscall3(__NR_read, fd, (long)data, sizeof(data))) > 0) {
    for (long i = 0; i < size; i++) {
      if (data[i] != '\n') {
        if (used + 1 < sizeof(line))
          line[used++] = data[i];
        continue;
      }
      line[used] = 0;
      if (used > NAME_COLUMN)
        tell_symbol(line);
      used = 0;
    }
  }
  syscall3(__NR_close, fd, 0, 0);
}

static void make_counters(void) {
  unsigned long entry = 0;
  long place = syscall6(__NR_mmap, COUNTERS, PAGE, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (place != (long)COUNTERS)
    fail("counters");
  counters[0] = 0; // now it is in memory
  long fd = syscall3(__NR_open, (long)"/proc/self/pagemap", O_RDONLY, 0);
  syscall6(__NR_pread64, fd, (long)&entry, sizeof(entry),
           COUNTERS / PAGE * sizeof(entry), 0, 0);
  syscall3(__NR_close, fd, 0, 0);
  if (!(entry & PAGEMAP_PRESENT))
    fail("pagemap");
  print("compute: counters ");
  print_hex((entry & PAGEMAP_PFN) * PAGE);
  print("\n");
}

static void start_worker(int index) {
  char name[] = "compute-0";
  long pid = syscall3(__NR_fork, 0, 0, 0);
  if (pid < 0)
    fail("fork");
  if (pid > 0)
    return;
  name[sizeof(name) - 2] = (char)('0' + index);
  syscall3(__NR_prctl, PR_SET_NAME, (long)name, 0);
  compute(index);
}

__attribute__((noreturn, used)) static void guest_main(void) {
  syscall3(__NR_mkdir, (long)"/proc", 0755, 0);
  syscall6(__NR_mount, (long)"proc", (long)"/proc", (long)"proc", 0, 0, 0);
  // The kernel's own messages stay out of our lines.
  syscall3(__NR_syslog, SYSLOG_ACTION_CONSOLE_LEVEL, 0, CONSOLE_BY_USER_ONLY);
  print("\n");
  tell_symbols();
  make_counters();
  for (int i = 1; i <= WORKERS; i++)
    start_worker(i);
  for (int i = 1; i <= WORKERS; i++)
    while (counters[i] == 0)
      syscall3(__NR_sched_yield, 0, 0, 0);
  print("compute: ready\n");
  syscall3(__NR_ioctl, 1, TCSBRK, 1); // until the line is out
  compute(0);
}

__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  and $-16, %rsp\n"
        "  call guest_main\n");
