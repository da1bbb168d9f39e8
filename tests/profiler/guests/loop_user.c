// Runs before the guest's init: leaves a process that calls into the module
// loop without end, once that is loaded, and becomes /init.

#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/loop.h>
#include <linux/prctl.h>

#define CONTROL "/dev/loop-control"
#define CONTROL_DEVICE (10 << 8 | 237)
#define CHARACTER_DEVICE 0020600
#define SIGCHLD 17

static long call(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return result;
}

static void use_loop(void) {
  call(__NR_prctl, PR_SET_NAME, (long)"loop-user", 0, 0);
  call(__NR_mknodat, AT_FDCWD, (long)CONTROL, CHARACTER_DEVICE, CONTROL_DEVICE);
  long control;
  while ((control = call(__NR_openat, AT_FDCWD, (long)CONTROL, O_RDWR, 0)) < 0)
    call(__NR_sched_yield, 0, 0, 0, 0);
  for (;;)
    call(__NR_ioctl, control, LOOP_CTL_GET_FREE, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n\tcall guest_main\n");

void guest_main(long *stack) {
  if (!call(__NR_clone, SIGCHLD, 0, 0, 0))
    use_loop();
  char **arguments = (char **)(stack + 1);
  char **environment = arguments + *stack + 1;
  call(__NR_execve, (long)"/init", (long)arguments, (long)environment, 0);
  call(__NR_exit, 1, 0, 0, 0);
}
