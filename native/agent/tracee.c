#include "tracee.h"
#include "session.h"
#include <errno.h>
#include <linux/ptrace.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* include/linux/errno.h: what a system call returns inside the kernel to be
 * restarted. User space never sees them, a tracer does. */
enum {
  ERESTARTSYS = 512,
  ERESTARTNOINTR = 513,
  ERESTARTNOHAND = 514,
  ERESTART_RESTARTBLOCK = 516,
};

static sigset_t child_signal(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  return set;
}

uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int tracee_init(void) {
  sigset_t set = child_signal();
  if (sigprocmask(SIG_BLOCK, &set, NULL))
    return -errno;
  int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  return fd >= 0 ? fd : -errno;
}

struct tracee_stop tracee_stop_of(int status) {
  struct tracee_stop stop = {
      .kind = TRACEE_EXITED,
      .quietly = WIFEXITED(status) && !WEXITSTATUS(status),
  };
  if (!WIFSTOPPED(status))
    return stop;
  stop.signal = WSTOPSIG(status);
  if (status >> 16 == PTRACE_EVENT_STOP)
    stop.kind = stop.signal == SIGTRAP ? TRACEE_EVENT_STOP : TRACEE_GROUP_STOP;
  else if (stop.signal == (SIGTRAP | 0x80)) /* PTRACE_O_TRACESYSGOOD */
    stop.kind = TRACEE_SYSCALL_STOP;
  else
    stop.kind = TRACEE_SIGNAL_STOP;
  return stop;
}

pid_t tracee_peek(bool *sigstop) {
  siginfo_t info = {0};
  int options = WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL;
  if (waitid(P_ALL, 0, &info, options))
    return 0;
  *sigstop = info.si_code == CLD_TRAPPED && info.si_status == SIGSTOP;
  return info.si_pid;
}

bool tracee_take(pid_t tid, int *status) {
  return waitpid(tid, status, WNOHANG | __WALL) == tid;
}

bool tracee_sleep(uint64_t deadline) {
  uint64_t now = now_ns();
  if (now >= deadline)
    return false;
  uint64_t left = deadline - now;
  struct timespec timeout = {(time_t)(left / 1000000000u),
                             (long)(left % 1000000000u)};
  sigset_t set = child_signal();
  return sigtimedwait(&set, NULL, &timeout) >= 0 || errno == EINTR;
}

bool tracee_wait(pid_t tid, uint64_t deadline, struct tracee_stop *stop) {
  for (;;) {
    int status;
    pid_t got = waitpid(tid, &status, WNOHANG | __WALL);
    if (got == tid || (got < 0 && errno == ECHILD)) {
      *stop = got < 0 ? (struct tracee_stop){.kind = TRACEE_EXITED}
                      : tracee_stop_of(status);
      return true;
    }
    if (!tracee_sleep(deadline))
      return false;
  }
}

static int call(enum __ptrace_request request, pid_t tid, void *address,
                void *data) {
  return ptrace(request, tid, address, data) < 0 ? -errno : 0;
}

int tracee_seize(pid_t tid, bool suspend_seccomp) {
  uintptr_t options = PTRACE_O_TRACESYSGOOD;
  if (suspend_seccomp)
    options |= PTRACE_O_SUSPEND_SECCOMP;
  return call(PTRACE_SEIZE, tid, NULL, (void *)options);
}

bool tracee_may_suspend_seccomp(void) {
  pid_t child = fork();
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
      pause();
  }
  if (child < 0)
    return false;
  bool may = !tracee_seize(child, true);
  kill(child, SIGKILL);
  waitpid(child, NULL, __WALL);
  return may;
}

int tracee_interrupt(pid_t tid) {
  return call(PTRACE_INTERRUPT, tid, NULL, NULL);
}

int tracee_resume(pid_t tid, enum __ptrace_request how, int signal) {
  return call(how, tid, NULL, (void *)(uintptr_t)signal);
}

int tracee_get_registers(pid_t tid, struct user_regs_struct *registers) {
  return call(PTRACE_GETREGS, tid, NULL, registers);
}

int tracee_set_registers(pid_t tid, const struct user_regs_struct *registers) {
  return call(PTRACE_SETREGS, tid, NULL, (void *)registers);
}

int tracee_get_mask(pid_t tid, uint64_t *mask) {
  return call(PTRACE_GETSIGMASK, tid, (void *)KERNEL_SIGSET_SIZE, mask);
}

int tracee_set_mask(pid_t tid, uint64_t mask) {
  return call(PTRACE_SETSIGMASK, tid, (void *)KERNEL_SIGSET_SIZE, &mask);
}

int tracee_signal_info(pid_t tid, siginfo_t *info) {
  return call(PTRACE_GETSIGINFO, tid, NULL, info);
}

bool tracee_at_entry(pid_t tid) {
  struct __ptrace_syscall_info info;
  long size = ptrace(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof(info), &info);
  return size > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY;
}

bool tracee_in_wait(const struct user_regs_struct *registers) {
  if ((int64_t)registers->orig_rax < 0)
    return false;
  switch (-(int64_t)registers->rax) {
  case ERESTARTSYS:
  case ERESTARTNOINTR:
  case ERESTARTNOHAND:
  case ERESTART_RESTARTBLOCK:
    return true;
  }
  return false;
}

void tracee_make_restartable(struct user_regs_struct *registers) {
  if (tracee_in_wait(registers)) {
    /* What arch_do_signal_or_restart does when there is no signal. */
    bool block = -(int64_t)registers->rax == ERESTART_RESTARTBLOCK;
    registers->rax = block ? SYS_restart_syscall : registers->orig_rax;
    registers->rip -= SYSCALL_INSTRUCTION_SIZE;
  }
  registers->orig_rax = (uint64_t)-1;
}
