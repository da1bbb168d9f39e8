#include "threads.h"
#include "cleanup.h"
#include "tracee.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

/* A thread that was told to stop must be seen to: it cannot be let go before.
 * On a busy host it may be a while until it runs. */
static const uint64_t look_timeout_ns = 2000000000;
static const uint64_t pause_ns = 2000000;

static bool all_known(const struct discovery *found) {
  for (int i = 0; i < found->info.vcpu_count; i++)
    if (!found->vcpu[i].tid)
      return false;
  return true;
}

static bool is_known(const struct discovery *found, pid_t tid) {
  for (int i = 0; i < found->info.vcpu_count; i++)
    if (found->vcpu[i].tid == tid)
      return true;
  return false;
}

static bool is_running(pid_t pid, pid_t tid) {
  char path[64], text[8] = {0};
  snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
  scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
  return fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 &&
         !strncmp(text, "running", 7);
}

/*
 * Stops a running thread to see whether it is in KVM_RUN. A KVM_RUN that this
 * interrupted is entered again, as at every stop.
 */
static void look_at(struct discovery *found, pid_t tid) {
  struct tracee_stop stop;
  if (tracee_seize(tid, false))
    return;
  struct user_regs_struct registers;
  if (tracee_interrupt(tid) ||
      !tracee_wait(tid, now_ns() + look_timeout_ns, &stop) ||
      stop.kind == TRACEE_EXITED || tracee_get_registers(tid, &registers)) {
    tracee_resume(tid, PTRACE_DETACH, 0);
    return;
  }
  if (registers.orig_rax == SYS_ioctl && registers.rsi == KVM_RUN) {
    for (int i = 0; i < found->info.vcpu_count; i++)
      if ((uint64_t)found->vcpu[i].fd == registers.rdi)
        found->vcpu[i].tid = tid;
    if (stop.kind == TRACEE_EVENT_STOP && (int64_t)registers.rax == -EINTR) {
      registers.rip -= SYSCALL_INSTRUCTION_SIZE;
      registers.rax = registers.orig_rax;
      registers.orig_rax = (uint64_t)-1;
      tracee_set_registers(tid, &registers);
    }
  }
  tracee_resume(tid, PTRACE_DETACH,
                stop.kind == TRACEE_SIGNAL_STOP ? stop.signal : 0);
}

/* A vCPU that never ran shows nowhere; VMMs name its thread after it: one
 * whose name has "cpu" in it and the vCPU's number as its only number. */
static void look_at_name(struct discovery *found, pid_t tid) {
  char path[64], name[32] = {0};
  snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", found->info.pid, tid);
  scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, name, sizeof(name) - 1) <= 0 ||
      !strcasestr(name, "cpu"))
    return;
  size_t start = strcspn(name, "0123456789");
  size_t end = start + strspn(name + start, "0123456789");
  if (start == end || strpbrk(name + end, "0123456789"))
    return;
  int id = atoi(name + start);
  for (int i = 0; i < found->info.vcpu_count; i++)
    if (found->vcpu[i].id == id && !found->vcpu[i].tid)
      found->vcpu[i].tid = tid;
}

static void each_thread(struct discovery *found, bool by_name) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/task", found->info.pid);
  scoped_directory directory = opendir(path);
  struct dirent *entry;
  while (directory && !all_known(found) && (entry = readdir(directory))) {
    pid_t tid = atoi(entry->d_name);
    if (tid <= 0 || is_known(found, tid) ||
        !discover_is_user_thread(found->info.pid, tid))
      continue;
    if (by_name)
      look_at_name(found, tid);
    else if (is_running(found->info.pid, tid))
      look_at(found, tid);
    else
      discover_thread(found, tid);
  }
}

enum kvmgdb_agent_status threads_find(struct discovery *found,
                                      uint64_t timeout_ns,
                                      struct agent_error *error) {
  uint64_t deadline = now_ns() + timeout_ns;
  while (!all_known(found) && now_ns() < deadline) {
    each_thread(found, false);
    struct timespec pause = {0, (long)pause_ns};
    if (!all_known(found))
      nanosleep(&pause, NULL);
  }
  if (!all_known(found))
    each_thread(found, true);
  for (int i = 0; i < found->info.vcpu_count; i++) {
    if (!found->vcpu[i].tid)
      return agent_fail(error, KVMGDB_AGENT_NO_THREAD, 0, i, found->vcpu[i].id);
    found->vcpu[i].seccomp =
        discover_seccomp(found->info.pid, found->vcpu[i].tid);
  }
  return KVMGDB_AGENT_OK;
}
