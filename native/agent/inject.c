#include "inject.h"
#include "cleanup.h"
#include "maps.h"
#include "stop.h"
#include "tracee.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

/*
 * The thread is sent into this code with the registers of the call, and with
 * its stack pointer at a frame that holds those it is to run on with. If the
 * agent dies while it is in there, it finds its way back alone, with the
 * signal mask that it had: all signals are blocked around the call.
 */
/* clang-format off */
static const uint8_t trampoline[] = {
    0x0f, 0x05,                              /* syscall */
    0xb8, SYS_rt_sigprocmask, 0, 0, 0,       /* mov eax, rt_sigprocmask */
    0xbf, SIG_SETMASK, 0, 0, 0,              /* mov edi, SIG_SETMASK */
    0x48, 0x89, 0xe6,                        /* mov rsi, rsp: frame.mask */
    0x31, 0xd2,                              /* xor edx, edx */
    0x41, 0xba, KERNEL_SIGSET_SIZE, 0, 0, 0, /* mov r10d, its size */
    0x0f, 0x05,                              /* syscall */
    0x5f, 0x5f, 0x5e, 0x5a,                  /* pop rdi, rdi, rsi, rdx */
    0x41, 0x5a, 0x59, 0x41, 0x5b, 0x58,      /* pop r10, rcx, r11, rax */
    0x48, 0xcf, /* iretq: rip, cs, rflags, rsp, ss at once */
};
/* clang-format on */
_Static_assert(sizeof(trampoline) <= CAVE_SIZE, "the trampoline fits");

struct frame {
  uint64_t mask;
  uint64_t rdi, rsi, rdx, r10, rcx, r11, rax;
  uint64_t rip, cs, rflags, rsp, ss;
};

enum {
  /* The psABI's red zone below rsp belongs to the code; beyond it anything
   * may be overwritten, as signal handlers do. */
  RED_ZONE = 128,
  MAX_DATA = KVMGDB_AGENT_MAX_PAYLOAD,
  STACK_SIZE = RED_ZONE + MAX_DATA + sizeof(struct frame) + 64,
};

static const uint64_t call_timeout_ns = 2000000000;

static bool is_zero(const uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (bytes[i])
      return false;
  return true;
}

/* Agent and guardian that were killed together leave it behind. */
static bool is_trampoline(const uint8_t *bytes) {
  return !memcmp(bytes, trampoline, sizeof(trampoline)) &&
         is_zero(bytes + sizeof(trampoline), CAVE_SIZE - sizeof(trampoline));
}

/*
 * The end of the last page of a program or library text is padding, and so is
 * that of the vDSO, which every process has: no page needs to be made.
 */
enum kvmgdb_agent_status inject_find_cave(struct session *session,
                                          struct agent_error *error) {
  scoped_stream maps = maps_open(session->pid);
  if (!maps)
    return agent_fail(error, KVMGDB_AGENT_GONE, errno, -1, 0);
  session->cave = 0;
  struct mapping mapping;
  while (maps_next(maps, &mapping)) {
    uint8_t tail[2 * CAVE_SIZE];
    if (strcmp(mapping.flags, "r-xp") ||
        pread(session->memory_fd, tail, sizeof(tail),
              (off_t)(mapping.end - sizeof(tail))) != (ssize_t)sizeof(tail) ||
        !is_zero(tail, CAVE_SIZE) ||
        !(is_zero(tail + CAVE_SIZE, CAVE_SIZE) ||
          is_trampoline(tail + CAVE_SIZE)))
      continue;
    session->cave = mapping.end - CAVE_SIZE;
    if (!strcmp(mapping.name, "[vdso]"))
      break; /* the best: nothing else ever looks there */
  }
  return session->cave ? KVMGDB_AGENT_OK
                       : agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, 0);
}

static enum kvmgdb_agent_status write_cave(struct session *session,
                                           struct agent_error *error) {
  struct journal *journal = session->journal;
  if (journal->cave)
    return KVMGDB_AGENT_OK;
  ssize_t size = CAVE_SIZE;
  if (pread(session->memory_fd, journal->cave_found, CAVE_SIZE,
            (off_t)session->cave) != size)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  if (is_trampoline(journal->cave_found))
    memset(journal->cave_found, 0, CAVE_SIZE);
  __atomic_store_n(&journal->cave, session->cave, __ATOMIC_RELEASE);
  size = sizeof(trampoline);
  if (pwrite(session->memory_fd, trampoline, sizeof(trampoline),
             (off_t)session->cave) != size)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  return KVMGDB_AGENT_OK;
}

void inject_remove_cave(struct session *session) {
  struct journal *journal = session->journal;
  if (!journal->cave)
    return;
  ssize_t written = pwrite(session->memory_fd, journal->cave_found, CAVE_SIZE,
                           (off_t)journal->cave);
  (void)written; /* the VMM may be gone, and then nothing is left to mend */
  __atomic_store_n(&journal->cave, 0, __ATOMIC_RELEASE);
}

/*
 * To the next syscall-stop. All signals are blocked but SIGSTOP: ours is to be
 * swallowed, and somebody else's comes again after the call.
 */
static bool to_syscall_stop(struct session *session, struct vcpu *vcpu,
                            uint64_t deadline, bool *stopped_by_user) {
  struct tracee_stop stop;
  if (tracee_resume(vcpu->tid, PTRACE_SYSCALL, 0))
    return false;
  while (tracee_wait(vcpu->tid, deadline, &stop)) {
    if (stop.kind == TRACEE_SYSCALL_STOP)
      return true;
    if (stop.kind == TRACEE_EXITED) {
      vcpu->phase = PHASE_GONE;
      session->gone = true;
      return false;
    }
    siginfo_t info = {0};
    if (stop.kind == TRACEE_SIGNAL_STOP && stop.signal == SIGSTOP &&
        !tracee_signal_info(vcpu->tid, &info) && info.si_code != POLL_IN)
      *stopped_by_user = true;
    tracee_resume(vcpu->tid, PTRACE_SYSCALL, 0);
  }
  return false;
}

/* From a syscall-stop to an event-stop at the same instruction. */
static bool to_event_stop(struct session *session, struct vcpu *vcpu,
                          uint64_t deadline) {
  struct tracee_stop stop;
  if (tracee_interrupt(vcpu->tid) || tracee_resume(vcpu->tid, PTRACE_CONT, 0))
    return false;
  while (tracee_wait(vcpu->tid, deadline, &stop)) {
    if (stop.kind == TRACEE_EVENT_STOP || stop.kind == TRACEE_GROUP_STOP)
      return true;
    if (stop.kind == TRACEE_EXITED) {
      vcpu->phase = PHASE_GONE;
      session->gone = true;
      return false;
    }
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  }
  return false;
}

/*
 * The order of things keeps the thread fit to run on without us at each moment:
 * its signals are blocked only while its registers are in the trampoline, which
 * lets them through again.
 */
static enum kvmgdb_agent_status run_call(struct session *session,
                                         struct vcpu *vcpu,
                                         const struct user_regs_struct *call,
                                         long *result,
                                         struct agent_error *error) {
  uint64_t deadline = now_ns() + call_timeout_ns;
  bool stopped_by_user = false;
  int failed = tracee_set_registers(vcpu->tid, call);
  if (!failed)
    failed = tracee_set_mask(vcpu->tid, ~UINT64_C(0));
  if (failed) {
    session->gone |= failed == -ESRCH;
    return agent_fail(error, KVMGDB_AGENT_GONE, -failed, vcpu->index, 0);
  }
  struct user_regs_struct after;
  bool done = to_syscall_stop(session, vcpu, deadline, &stopped_by_user) &&
              to_syscall_stop(session, vcpu, deadline, &stopped_by_user) &&
              !tracee_get_registers(vcpu->tid, &after) &&
              to_event_stop(session, vcpu, deadline);
  if (!done) {
    if (!session->gone)
      vcpu->phase = PHASE_RUNNING; /* it ends the call and runs on alone */
    return agent_fail(error,
                      session->gone ? KVMGDB_AGENT_GONE : KVMGDB_AGENT_TIMEOUT,
                      0, vcpu->index, -1);
  }
  stop_restore_signals(session, vcpu);
  tracee_set_registers(vcpu->tid, &vcpu->parked);
  if (stopped_by_user)
    kill(session->pid, SIGSTOP);
  *result = (long)after.rax;
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status
inject(struct session *session, struct vcpu *vcpu, int fd,
       unsigned long request, unsigned long argument, void *data, size_t size,
       long *result, struct agent_error *error) {
  if (vcpu->phase != PHASE_PARKED)
    return agent_fail(error, KVMGDB_AGENT_RUNNING, 0, vcpu->index, 0);
  if (size > MAX_DATA)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, vcpu->index, 0);
  enum kvmgdb_agent_status status = write_cave(session, error);
  if (status)
    return status;

  const struct user_regs_struct *parked = &vcpu->parked;
  uint64_t data_address = (parked->rsp - RED_ZONE - size) & ~UINT64_C(63);
  uint64_t frame_address = data_address - sizeof(struct frame);
  size_t length = data_address + size - frame_address;
  uint64_t mask;
  int failed = stop_note_signals(session, vcpu, &mask);
  if (failed) {
    session->gone |= failed == -ESRCH;
    return agent_fail(error, KVMGDB_AGENT_GONE, -failed, vcpu->index, 0);
  }
  struct frame frame = {
      .mask = mask,
      .rdi = parked->rdi,
      .rsi = parked->rsi,
      .rdx = parked->rdx,
      .r10 = parked->r10,
      .rcx = parked->rcx,
      .r11 = parked->r11,
      .rax = parked->rax,
      .rip = parked->rip,
      .cs = parked->cs,
      .rflags = parked->eflags,
      .rsp = parked->rsp,
      .ss = parked->ss,
  };
  uint8_t found[STACK_SIZE], image[STACK_SIZE];
  memcpy(image, &frame, sizeof(frame));
  if (size)
    memcpy(image + sizeof(frame), data, size);
  if (pread(session->memory_fd, found, length, (off_t)frame_address) !=
          (ssize_t)length ||
      pwrite(session->memory_fd, image, length, (off_t)frame_address) !=
          (ssize_t)length)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, vcpu->index, 0);

  struct user_regs_struct call = *parked;
  call.rip = session->cave;
  call.rsp = frame_address;
  call.rax = SYS_ioctl;
  call.rdi = (uint64_t)fd;
  call.rsi = request;
  call.rdx = size ? data_address : argument;
  call.orig_rax = (uint64_t)-1;
  status = run_call(session, vcpu, &call, result, error);
  if (status)
    return status;
  if (size && pread(session->memory_fd, data, size, (off_t)data_address) !=
                  (ssize_t)size)
    status = agent_fail(error, KVMGDB_AGENT_HOST, errno, vcpu->index, 0);
  if (pwrite(session->memory_fd, found, length, (off_t)frame_address) !=
      (ssize_t)length)
    status = agent_fail(error, KVMGDB_AGENT_HOST, errno, vcpu->index, 0);
  return status;
}

enum kvmgdb_agent_status inject_ioctl(struct session *session,
                                      struct vcpu *vcpu, int fd,
                                      unsigned long request, void *data,
                                      size_t size, long *result,
                                      struct agent_error *error) {
  return inject(session, vcpu, fd, request, 0, data, size, result, error);
}

enum kvmgdb_agent_status
inject_plain_ioctl(struct session *session, struct vcpu *vcpu, int fd,
                   unsigned long request, unsigned long argument, long *result,
                   struct agent_error *error) {
  return inject(session, vcpu, fd, request, argument, NULL, 0, result, error);
}
