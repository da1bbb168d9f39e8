#include "attach.h"
#include "breakpoints.h"
#include "cleanup.h"
#include "discover.h"
#include "guest_debug.h"
#include "inject.h"
#include "perf.h"
#include "plant.h"
#include "priority.h"
#include "sampler.h"
#include "stepping.h"
#include "stop.h"
#include "threads.h"
#include "tracee.h"
#include <errno.h>
#include <fcntl.h>
#include <kvmgdb/kvmgdb.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

static const uint64_t find_threads_ns = 1000000000;
static const uint64_t detach_ns = 2000000000;
static const uint32_t wanted_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;

/* Until KVM_CAP_SET_GUEST_DEBUG2 (5.13) nothing tells; these are older. */
static const uint32_t guest_debug_always =
    KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP |
    KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP;

enum kvmgdb_agent_status agent_fail(struct agent_error *error,
                                    enum kvmgdb_agent_status status,
                                    int os_error, int vcpu, int64_t detail) {
  *error = (struct agent_error){status, os_error, vcpu, detail};
  return status;
}

static enum kvmgdb_agent_status fail_by_errno(struct agent_error *error,
                                              int reason, int vcpu) {
  enum kvmgdb_agent_status status = KVMGDB_AGENT_HOST;
  if (reason == EPERM || reason == EACCES)
    status = KVMGDB_AGENT_PERMISSION;
  else if (reason == ESRCH || reason == ENOENT)
    status = KVMGDB_AGENT_NO_PROCESS;
  return agent_fail(error, status, reason, vcpu, 0);
}

/* ---- opening ------------------------------------------------------------ */

/* The page that KVM shares with the VMM, shared with us as well. */
enum kvmgdb_agent_status session_map_kvm_run(struct session *session,
                                             struct vcpu *vcpu,
                                             struct agent_error *error) {
  scoped_fd fd = (int)syscall(SYS_pidfd_getfd, session->pid_fd, vcpu->fd, 0);
  if (fd < 0)
    return fail_by_errno(error, errno, vcpu->index);
  void *page = mmap(NULL, sizeof(struct kvm_run), PROT_READ | PROT_WRITE,
                    MAP_SHARED, fd, 0);
  if (page == MAP_FAILED)
    return fail_by_errno(error, errno, vcpu->index);
  vcpu->run = page;
  return KVMGDB_AGENT_OK;
}

/* A filter would kill the VMM at our first call in it. */
static enum kvmgdb_agent_status check_seccomp(const struct session *session,
                                              struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].seccomp)
      return tracee_may_suspend_seccomp()
                 ? KVMGDB_AGENT_OK
                 : agent_fail(error, KVMGDB_AGENT_SECCOMP, EPERM, i, 0);
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status make_shared(struct session *session,
                                            struct agent_error *error) {
  size_t size = sizeof(struct kvmgdb_agent_shared);
  session->shared_fd = memfd_create("kvmgdb-agent", MFD_CLOEXEC);
  session->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (session->shared_fd < 0 || session->event_fd < 0 ||
      ftruncate(session->shared_fd, (off_t)size))
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  void *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
                      session->shared_fd, 0);
  void *journal = mmap(NULL, sizeof(struct journal), PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  session->shared = shared == MAP_FAILED ? NULL : shared;
  session->journal = journal == MAP_FAILED ? NULL : journal;
  if (!session->shared || !session->journal)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  session->shared->vcpu_count = (uint32_t)session->vcpu_count;
  session->shared->focus = -1;
  for (int i = 0; i < session->vcpu_count; i++) {
    session->shared->vcpu[i].id = session->vcpu[i].id;
    session->shared->vcpu[i].tid = session->vcpu[i].tid;
  }
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status session_open(struct session *session, pid_t pid,
                                      struct agent_error *error) {
  *session = (struct session){.pid = pid,
                              .pid_fd = -1,
                              .memory_fd = -1,
                              .shared_fd = -1,
                              .event_fd = -1,
                              .guardian_pipe = -1};
  /* First of all: from here on a PID that is used again is noticed. */
  session->pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (session->pid_fd < 0)
    return fail_by_errno(error, errno == EINVAL ? ESRCH : errno, -1);
  scoped_memory struct discovery *found = malloc(sizeof(*found));
  if (!found)
    return agent_fail(error, KVMGDB_AGENT_HOST, ENOMEM, -1, 0);
  enum kvmgdb_agent_status status = discover(pid, found, error);
  if (!status)
    status = threads_find(found, find_threads_ns, error);
  if (status)
    return status;
  char path[64];
  /* Some hosts let only the tracer write to read-only pages, and ask it about
   * the thread that the file belongs to. */
  snprintf(path, sizeof(path), "/proc/%d/task/%d/mem", pid, found->vcpu[0].tid);
  session->memory_fd = open(path, O_RDWR | O_CLOEXEC);
  if (session->memory_fd < 0)
    return fail_by_errno(error, errno, -1);
  session->vm_fd = found->info.vm_fd;
  session->vcpu_count = found->info.vcpu_count;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    *vcpu = (struct vcpu){.index = i,
                          .id = found->vcpu[i].id,
                          .fd = found->vcpu[i].fd,
                          .tid = found->vcpu[i].tid,
                          .seccomp = found->vcpu[i].seccomp,
                          .perf_fd = -1};
    status = session_map_kvm_run(session, vcpu, error);
    if (status)
      return status;
  }
  status = check_seccomp(session, error);
  if (!status)
    status = make_shared(session, error);
  if (!status)
    status = inject_find_cave(session, error);
  if (!status)
    session->perf = perf_open(session);
  return status;
}

void session_close(struct session *session) {
  perf_close(session);
  kvmgdb_memory_destroy(session->guest_memory);
  session->guest_memory = NULL;
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].run)
      munmap(session->vcpu[i].run, sizeof(struct kvm_run));
  if (session->shared)
    munmap(session->shared, sizeof(*session->shared));
  if (session->journal)
    munmap(session->journal, sizeof(*session->journal));
  close_descriptor(&session->shared_fd);
  close_descriptor(&session->event_fd);
  close_descriptor(&session->memory_fd);
  close_descriptor(&session->pid_fd);
  session->vcpu_count = 0;
  session->shared = NULL;
  session->journal = NULL;
}

/* ---- attaching ---------------------------------------------------------- */

enum kvmgdb_agent_status session_seize(struct vcpu *vcpu,
                                       struct agent_error *error) {
  int failed = tracee_seize(vcpu->tid, vcpu->seccomp != 0);
  if (failed)
    return fail_by_errno(error, -failed, vcpu->index);
  priority_come_before(vcpu->tid);
  vcpu->seized = true;
  vcpu->phase = PHASE_RUNNING;
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status check_extension(struct session *session,
                                                long capability, long *result,
                                                struct agent_error *error) {
  enum kvmgdb_agent_status status = inject_plain_ioctl(
      session, &session->vcpu[0], session->vm_fd, KVM_CHECK_EXTENSION,
      (unsigned long)capability, result, error);
  if (!status && *result < 0)
    return agent_fail(error, KVMGDB_AGENT_REFUSED, (int)-*result, 0, 0);
  return status;
}

/* What this host's KVM offers to any guest; 0 where we may not ask. */
static long host_sync_regs(void) {
  scoped_fd kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  int result =
      kvm < 0 ? -1 : ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS);
  return result > 0 ? result : 0;
}

static enum kvmgdb_agent_status ask_kvm(struct session *session,
                                        struct agent_error *error) {
  long sync = 0, debug = 0;
  enum kvmgdb_agent_status status =
      check_extension(session, KVM_CAP_SYNC_REGS, &sync, error);
  if (!status)
    status = check_extension(session, KVM_CAP_SET_GUEST_DEBUG2, &debug, error);
  if (status)
    return status;
  /* KVM takes the capability back from a guest whose state is encrypted, and
   * such a guest's KVM_RUN would fail with kvm_valid_regs set. */
  if (!sync && host_sync_regs())
    return agent_fail(error, KVMGDB_AGENT_CONFIDENTIAL, 0, -1, 0);
  session->sync_regs = (sync & wanted_regs) == wanted_regs;
  session->guest_debug_supported = debug ? (uint32_t)debug : guest_debug_always;
  return KVMGDB_AGENT_OK;
}

void session_set_valid_regs(struct session *session, struct vcpu *vcpu) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  journal->valid_regs_found = (uint32_t)vcpu->run->kvm_valid_regs;
  __atomic_store_n(&journal->valid_regs_changed, 1, __ATOMIC_RELEASE);
  vcpu->run->kvm_valid_regs |= wanted_regs;
}

static void restore_valid_regs(struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct journal_vcpu *journal = &session->journal->vcpu[i];
    if (!journal->valid_regs_changed)
      continue;
    session->vcpu[i].run->kvm_valid_regs = journal->valid_regs_found;
    __atomic_store_n(&journal->valid_regs_changed, 0, __ATOMIC_RELEASE);
  }
}

enum kvmgdb_agent_status session_attach(struct session *session,
                                        uint64_t timeout_ns,
                                        struct agent_error *error) {
  enum kvmgdb_agent_status status = KVMGDB_AGENT_OK;
  for (int i = 0; !status && i < session->vcpu_count; i++)
    status = session_seize(&session->vcpu[i], error);
  if (!status)
    status =
        stop_vcpus(session, KVMGDB_AGENT_ALL, now_ns() + timeout_ns, error);
  if (!status)
    status = ask_kvm(session, error);
  if (status) {
    struct agent_error ignored;
    session_detach(session, &ignored);
    return status;
  }
  for (int i = 0; i < session->vcpu_count; i++) {
    if (session->sync_regs)
      session_set_valid_regs(session, &session->vcpu[i]);
    session->vcpu[i].let_run = true;
    stop_release(&session->vcpu[i]);
  }
  return KVMGDB_AGENT_OK;
}

/* ---- letting go --------------------------------------------------------- */

static bool has_pending(pid_t pid, pid_t tid, const char *name, int signal) {
  char path[64], line[256];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
  scoped_stream file = fopen(path, "re");
  size_t length = strlen(name);
  while (file && fgets(line, sizeof(line), file))
    if (!strncmp(line, name, length))
      return (strtoull(line + length, NULL, 16) >> (signal - 1)) & 1;
  return false;
}

/* A perf event may have sent its SIGSTOP to a thread that was stopped already
 * for another reason: it must not be left behind. */
static void swallow_pending_stop(struct session *session, struct vcpu *vcpu) {
  if (!has_pending(session->pid, vcpu->tid, "SigPnd:", SIGSTOP))
    return;
  struct tracee_stop stop;
  uint64_t deadline = now_ns() + detach_ns;
  tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  while (tracee_wait(vcpu->tid, deadline, &stop)) {
    if (stop.kind == TRACEE_EVENT_STOP || stop.kind == TRACEE_EXITED)
      return;
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  }
}

enum kvmgdb_agent_status session_detach(struct session *session,
                                        struct agent_error *error) {
  if (session->gone)
    return KVMGDB_AGENT_OK;
  sampler_stop(session);
  plant_remove_all(session);
  enum kvmgdb_agent_status status =
      stop_vcpus(session, KVMGDB_AGENT_ALL, now_ns() + detach_ns, error);
  if (status == KVMGDB_AGENT_GONE)
    return KVMGDB_AGENT_OK;
  struct agent_error ignored;
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->journal->vcpu[i].step_under_way)
      stepping_end(session, &session->vcpu[i], &ignored);
  breakpoints_clear(session);
  guest_debug_clear(session, &ignored);
  restore_valid_regs(session);
  if (!status) /* else a thread might still be in it, sent there by the dead */
    inject_remove_cave(session);
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!vcpu->seized)
      continue;
    if (vcpu->phase == PHASE_PARKED) {
      swallow_pending_stop(session, vcpu);
      stop_restore_signals(session, vcpu);
      tracee_resume(vcpu->tid, PTRACE_DETACH, 0);
    }
    vcpu->seized = false;
  }
  return status;
}

static bool needs_threads(const struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->journal->vcpu[i].guest_debug ||
        session->journal->vcpu[i].mask_changed)
      return true;
  return false;
}

/* The dead agent is the tracer until the kernel has taken it apart. */
static bool seize_when_free(struct vcpu *vcpu) {
  struct agent_error ignored;
  uint64_t deadline = now_ns() + detach_ns;
  while (session_seize(vcpu, &ignored)) {
    struct timespec pause = {0, 200000};
    if (ignored.status != KVMGDB_AGENT_PERMISSION || now_ns() >= deadline)
      return false;
    nanosleep(&pause, NULL);
  }
  return true;
}

void session_recover(struct session *session) {
  session->sampler = NULL; /* it went with the agent */
  plant_remove_all(session);
  if (!needs_threads(session)) {
    restore_valid_regs(session);
    inject_remove_cave(session);
    return;
  }
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    vcpu->seized = false;
    vcpu->event = false;
    vcpu->sampled = false;
    vcpu->mark_covers = 0; /* as it was when we were forked */
    if (!seize_when_free(vcpu))
      vcpu->phase = PHASE_GONE;
  }
  /* A debug exit since then has stopped the whole VMM: its threads stand, and
   * the exit is intact. SIGCONT would take back a SIGSTOP that is still on its
   * way to another debug exit, so none may be without us before it is sent. */
  stop_hold(session, now_ns() + detach_ns);
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].group_stop) {
      kill(session->pid, SIGCONT);
      break;
    }
  struct agent_error ignored;
  session_detach(session, &ignored);
}
