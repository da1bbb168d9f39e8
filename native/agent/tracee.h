/* ptrace, in the words of its manual page. All calls are the tracer's. */
#ifndef KVMGDB_AGENT_TRACEE_H
#define KVMGDB_AGENT_TRACEE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

enum { SYSCALL_INSTRUCTION_SIZE = 2 }; /* 0f 05 */
enum { KERNEL_SIGSET_SIZE = 8 };       /* sigset_t of the kernel on x86 */

enum tracee_stop_kind {
  TRACEE_EVENT_STOP, /* PTRACE_INTERRUPT, or the end of a group-stop */
  TRACEE_GROUP_STOP, /* the whole process was stopped by a signal */
  TRACEE_SIGNAL_STOP,
  TRACEE_SYSCALL_STOP,
  TRACEE_EXITED,
};

struct tracee_stop {
  enum tracee_stop_kind kind;
  int signal;
  bool quietly; /* EXITED with status 0: perhaps the thread alone */
};

/* Blocks SIGCHLD, which then only tells that a tracee has news, and returns a
 * descriptor that is readable while it is pending. -errno on failure. */
int tracee_init(void);

struct tracee_stop tracee_stop_of(int status);

/* The next tracee or child with news: its id, or 0 when there is none. The news
 * stay; `*sigstop`: it is about to get this signal. */
pid_t tracee_peek(bool *sigstop);

/* Takes the news of `tid`; false when there are none. */
bool tracee_take(pid_t tid, int *status);

/* Sleeps until there may be news or `deadline` (CLOCK_MONOTONIC, ns). False
 * when the deadline has passed. */
bool tracee_sleep(uint64_t deadline);

/* The next stop of one thread; false at the deadline. */
bool tracee_wait(pid_t tid, uint64_t deadline, struct tracee_stop *stop);

/* These return 0 or -errno; -ESRCH when the thread has died. */
int tracee_seize(pid_t tid, bool suspend_seccomp);
/* Whether this host lets us suspend seccomp filters, tried on a child. */
bool tracee_may_suspend_seccomp(void);
int tracee_interrupt(pid_t tid);
int tracee_resume(pid_t tid, enum __ptrace_request how, int signal);
int tracee_get_registers(pid_t tid, struct user_regs_struct *registers);
int tracee_set_registers(pid_t tid, const struct user_regs_struct *registers);
int tracee_get_mask(pid_t tid, uint64_t *mask);
int tracee_set_mask(pid_t tid, uint64_t mask);
int tracee_signal_info(pid_t tid, siginfo_t *info);

/* Whether a syscall-stop is the one at entry. */
bool tracee_at_entry(pid_t tid);

/* Whether the thread left a system call that the kernel would restart, that
 * is, whether it waits in one. */
bool tracee_in_wait(const struct user_regs_struct *registers);

/* Makes `registers` run on from where they stand with any orig_rax: a system
 * call that the kernel would restart is re-entered by its instruction. */
void tracee_make_restartable(struct user_regs_struct *registers);

#endif
