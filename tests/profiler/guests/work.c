// Runs before the guest's init, as a program of a distribution would: position
// independent, and mostly other people's code. Leaves one process for each kind
// of that, and becomes /init.

#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define APART __attribute__((noinline))

unsigned shared_work(unsigned seed);

static volatile unsigned long sink;

static APART void shares(void) {
  for (unsigned n = 0;; n++)
    sink += shared_work(n);
}

static APART void clocks(void) {
  for (;;) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sink += (unsigned long)now.tv_nsec;
  }
}

// As a C++ compiler names work::Loop<int>::run(unsigned int).
void mangled(unsigned times) __asm__("_ZN4work4LoopIiE3runEj");

APART void mangled(unsigned times) {
  for (unsigned n = 0; n < times; n++)
    __asm__ volatile("");
  sink++;
}

static APART void mangles(void) {
  for (;;)
    mangled(10000);
}

static APART void generates(void) {
  // push %rbp; mov %rsp, %rbp; mov $65536, %ecx; 1: dec %ecx; jnz 1b; pop; ret
  static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xb9,
                                       0,    0,    1,    0,    0xff,
                                       0xc9, 0x75, 0xfc, 0x5d, 0xc3};
  void *place = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(place, code, sizeof(code));
  for (;;) {
    ((void (*)(void))place)();
    sink++;
  }
}

static void begin(const char *name, void (*work)(void)) {
  if (!fork()) {
    prctl(PR_SET_NAME, name);
    work();
  }
}

int main(int count, char **arguments) {
  (void)count;
  begin("shares", shares);
  begin("clocks", clocks);
  begin("mangles", mangles);
  begin("generates", generates);
  execv("/init", arguments);
  return 1;
}
