#include "stop.h"
#include "discover.h"
#include "tracee.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* How often a vCPU that waits outside KVM_RUN is looked at again. */
static const uint64_t look_again_ns = 5000000;
/* A thread that was told to stop must be seen to, before it may be left alone.
 */
static const uint64_t settle_ns = 1000000000;
static const int exit_timeout_ms = 1000;
/* A VMM whose vCPU threads all wait for so long, outside KVM_RUN, has paused.
 */
static const uint64_t paused_ns = 150000000;

/* Whether these registers show KVM_RUN on this vCPU, entered or returned. */
static bool is_in_kvm_run(const struct session *session,
                          const struct vcpu *vcpu,
                          const struct user_regs_struct *registers) {
  if (registers->orig_rax != SYS_ioctl || registers->rsi != KVM_RUN)
    return false;
  return registers->rdi == (uint64_t)vcpu->fd ||
         syscall(SYS_kcmp, session->pid, session->pid, KCMP_FILE,
                 (unsigned long)vcpu->fd, registers->rdi) == 0;
}

/* Whether the VMM is about to see a debug exit (or an emulation failure that
 * may be one) in these registers, which is then held back. */
static bool is_debug_exit(const struct session *session,
                          const struct vcpu *vcpu,
                          const struct user_regs_struct *registers) {
  if (!session->journal->vcpu[vcpu->index].guest_debug || registers->rax)
    return false;
  uint32_t reason = vcpu->run->exit_reason;
  return (reason == KVM_EXIT_DEBUG || reason == KVM_EXIT_INTERNAL_ERROR) &&
         is_in_kvm_run(session, vcpu, registers);
}

/*
 * Exits after which KVM waits for nothing from the VMM: wherever the VMM's
 * thread is, the state of the vCPU is whole.
 */
static bool is_settled(const struct vcpu *vcpu) {
  switch (vcpu->run->exit_reason) {
  case KVM_EXIT_UNKNOWN: /* it has never run */
  case KVM_EXIT_HLT:
  case KVM_EXIT_INTR:
  case KVM_EXIT_IRQ_WINDOW_OPEN:
  case KVM_EXIT_SHUTDOWN:
  case KVM_EXIT_SET_TPR:
  case KVM_EXIT_DEBUG:
  case KVM_EXIT_INTERNAL_ERROR:
  case KVM_EXIT_SYSTEM_EVENT:
  case KVM_EXIT_IOAPIC_EOI:
    return true;
  }
  return false;
}

/* Whether its thread may stand where it waits in the VMM. */
static bool may_stand(const struct vcpu *vcpu) {
  return vcpu->paused || is_settled(vcpu);
}

static bool has_syscall_before(struct session *session, struct vcpu *vcpu,
                               uint64_t rip) {
  if (rip == vcpu->known_syscall)
    return true;
  uint8_t code[SYSCALL_INSTRUCTION_SIZE];
  if (pread(session->memory_fd, code, sizeof(code),
            (off_t)(rip - sizeof(code))) != (ssize_t)sizeof(code) ||
      code[0] != 0x0f || code[1] != 0x05)
    return false;
  vcpu->known_syscall = rip;
  return true;
}

int stop_note_signals(struct session *session, struct vcpu *vcpu,
                      uint64_t *mask) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  if (!journal->mask_changed) { /* else an agent that died has noted it */
    int result = tracee_get_mask(vcpu->tid, mask);
    if (result)
      return result;
    journal->mask = *mask;
    __atomic_store_n(&journal->mask_changed, 1, __ATOMIC_RELEASE);
  }
  *mask = journal->mask;
  return 0;
}

void stop_restore_signals(struct session *session, struct vcpu *vcpu) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  if (!journal->mask_changed)
    return;
  tracee_set_mask(vcpu->tid, journal->mask);
  __atomic_store_n(&journal->mask_changed, 0, __ATOMIC_RELEASE);
}

/*
 * Whether KVM has run a vCPU since it was let go: the RFLAGS that it leaves in
 * kvm_run->s are never 0. One that it has not run stands where it was parked,
 * and needs no KVM_RUN to be brought there.
 */
static void mark(struct vcpu *vcpu) {
  if (!vcpu->at_kvm_run || !vcpu->sync_fresh)
    return;
  vcpu->mark_covers = vcpu->run->s.regs.regs.rflags;
  vcpu->run->s.regs.regs.rflags = 0;
}

/* True when the mark was still there. */
static bool unmark(struct vcpu *vcpu) {
  bool there = vcpu->mark_covers && !vcpu->run->s.regs.regs.rflags;
  if (there)
    vcpu->run->s.regs.regs.rflags = vcpu->mark_covers;
  vcpu->mark_covers = 0;
  return there;
}

/* From here on `registers` is what the thread runs on with. */
static void set_parked(const struct session *session, struct vcpu *vcpu,
                       struct user_regs_struct registers, bool at_kvm_run) {
  if (at_kvm_run) {
    registers.rip -= SYSCALL_INSTRUCTION_SIZE;
    registers.rax = SYS_ioctl;
    registers.orig_rax = (uint64_t)-1;
  } else {
    tracee_make_restartable(&registers);
  }
  vcpu->parked = registers;
  vcpu->at_kvm_run = at_kvm_run;
  vcpu->sync_fresh =
      at_kvm_run && session->journal->vcpu[vcpu->index].valid_regs_changed;
  tracee_set_registers(vcpu->tid, &vcpu->parked);
}

/* From any other ptrace-stop to an event-stop, without running in between. */
static void go_to_event_stop(struct vcpu *vcpu) {
  vcpu->phase = PHASE_PARKING;
  tracee_interrupt(vcpu->tid);
  tracee_resume(vcpu->tid, PTRACE_CONT, 0);
}

/* The registers of KVM and the reason of the exit outlive the next KVM_RUN
 * only if they are kept now. */
static void hold_debug_exit(const struct session *session, struct vcpu *vcpu,
                            const struct user_regs_struct *registers) {
  vcpu->event = true;
  vcpu->event_reason = vcpu->run->exit_reason;
  vcpu->event_debug = vcpu->run->debug.arch;
  vcpu->event_suberror = vcpu->run->internal.suberror;
  set_parked(session, vcpu, *registers, true);
}

static void run_on(struct vcpu *vcpu, int signal) {
  enum __ptrace_request how = vcpu->walk ? PTRACE_SYSCALL : PTRACE_CONT;
  vcpu->unmoved &= vcpu->group_stop;
  tracee_resume(vcpu->tid, vcpu->group_stop ? PTRACE_LISTEN : how, signal);
}

static void walk_on(struct vcpu *vcpu) {
  if (vcpu->group_stop) {
    tracee_resume(vcpu->tid, PTRACE_LISTEN, 0);
    return;
  }
  vcpu->phase = PHASE_WALKING;
  vcpu->still_since = now_ns();
  tracee_resume(vcpu->tid, PTRACE_SYSCALL, 0);
}

/* An agent that died may have left a thread there, and the code is to go. */
static bool in_trampoline(const struct session *session, uint64_t rip) {
  uint64_t cave = session->journal->cave;
  return cave && rip >= cave && rip - cave < CAVE_SIZE;
}

/*
 * At an event-stop: park here if this is a place to stand, else walk. One that
 * is settled may stand `anywhere`: where KVM_RUN is entered again is better
 * only because it needs no call into the VMM to read its registers.
 */
static void park_or_walk(struct session *session, struct vcpu *vcpu,
                         bool anywhere) {
  struct user_regs_struct registers;
  if (vcpu->unmoved) {
    unmark(vcpu);
    vcpu->phase = PHASE_PARKED;
    return;
  }
  if (tracee_get_registers(vcpu->tid, &registers))
    return;
  if (unmark(vcpu) && registers.rip == vcpu->parked.rip &&
      registers.rax == vcpu->parked.rax &&
      registers.orig_rax == vcpu->parked.orig_rax) {
    vcpu->phase = PHASE_PARKED;
  } else if (is_debug_exit(session, vcpu, &registers)) {
    hold_debug_exit(session, vcpu, &registers);
    vcpu->phase = PHASE_PARKED;
  } else if ((int64_t)registers.rax == -EINTR &&
             is_in_kvm_run(session, vcpu, &registers) &&
             has_syscall_before(session, vcpu, registers.rip)) {
    set_parked(session, vcpu, registers, true);
    vcpu->phase = PHASE_PARKED;
  } else if (vcpu->sampled) {
    vcpu->phase = PHASE_GLANCED;
  } else if ((anywhere || tracee_in_wait(&registers)) && may_stand(vcpu) &&
             !in_trampoline(session, registers.rip)) {
    set_parked(session, vcpu, registers, false);
    vcpu->phase = PHASE_PARKED;
  } else {
    walk_on(vcpu);
  }
}

/*
 * A signal came to a thread that stands before a KVM_RUN which we make it
 * enter again. Without us KVM_RUN would have returned -EINTR before the
 * handler ran, and a VMM may rely on that: let it see exactly this.
 */
static void undo_reentry(struct vcpu *vcpu) {
  struct user_regs_struct registers;
  if (!vcpu->at_kvm_run || tracee_get_registers(vcpu->tid, &registers) ||
      registers.rip != vcpu->parked.rip || registers.rax != SYS_ioctl ||
      registers.orig_rax != (uint64_t)-1)
    return;
  unmark(vcpu);
  registers.rip += SYSCALL_INSTRUCTION_SIZE;
  registers.rax = (uint64_t)-EINTR;
  tracee_set_registers(vcpu->tid, &registers);
  vcpu->at_kvm_run = false;
}

/* A SIGSTOP from the perf event on debug exits: not the VMM's business. */
static bool is_from_perf(const struct vcpu *vcpu) {
  siginfo_t info = {0};
  return !tracee_signal_info(vcpu->tid, &info) && info.si_code == POLL_IN;
}

/* At a SIGSTOP; true when it is about a debug exit, which is held back now. It
 * may have been taken at an earlier stop already. */
static bool hold_if_debug_exit(const struct session *session,
                               struct vcpu *vcpu) {
  struct user_regs_struct registers;
  if (vcpu->event || !is_from_perf(vcpu) ||
      tracee_get_registers(vcpu->tid, &registers) ||
      !is_debug_exit(session, vcpu, &registers))
    return false;
  hold_debug_exit(session, vcpu, &registers);
  return true;
}

static void on_signal(struct vcpu *vcpu, int signal) {
  if (signal == SIGSTOP && is_from_perf(vcpu)) {
    signal = 0;
  } else {
    undo_reentry(vcpu);
  }
  switch (vcpu->phase) {
  case PHASE_RUNNING:
    run_on(vcpu, signal);
    break;
  case PHASE_WALKING:
    tracee_resume(vcpu->tid, PTRACE_SYSCALL, signal);
    break;
  default:
    /* Any ptrace-stop takes a pending PTRACE_INTERRUPT away. */
    if (signal)
      vcpu->phase = PHASE_INTERRUPTED;
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, signal);
  }
}

static void on_syscall(struct session *session, struct vcpu *vcpu) {
  struct user_regs_struct registers;
  if (tracee_get_registers(vcpu->tid, &registers))
    return;
  bool entry = tracee_at_entry(vcpu->tid);
  vcpu->still_since = now_ns();
  if (!entry && is_debug_exit(session, vcpu, &registers)) {
    hold_debug_exit(session, vcpu, &registers);
    go_to_event_stop(vcpu);
  } else if (vcpu->phase == PHASE_WALKING && !entry && may_stand(vcpu) &&
             tracee_in_wait(&registers)) {
    /* look_again() got it out of a wait, and this stop took its interrupt. */
    vcpu->phase = PHASE_INTERRUPTED;
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  } else if (vcpu->phase == PHASE_WALKING && entry &&
             is_in_kvm_run(session, vcpu, &registers)) {
    /* A KVM_RUN that begins with an interrupt completes the pending I/O and
     * returns -EINTR; nothing is left behind if we die meanwhile. */
    vcpu->phase = PHASE_INTERRUPTED;
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  } else if (vcpu->phase == PHASE_WALKING) {
    vcpu->paused = false; /* it does something */
    tracee_resume(vcpu->tid, PTRACE_SYSCALL, 0);
  } else if (vcpu->phase == PHASE_RUNNING) {
    run_on(vcpu, 0);
  } else {
    tracee_interrupt(vcpu->tid);
    tracee_resume(vcpu->tid, PTRACE_CONT, 0);
  }
}

/* An interrupt came after all to one that nobody waits for any more: what it
 * did to KVM_RUN is undone, as at every stop. */
static void reenter(struct session *session, struct vcpu *vcpu) {
  struct user_regs_struct registers;
  if (!tracee_get_registers(vcpu->tid, &registers) &&
      (int64_t)registers.rax == -EINTR &&
      is_in_kvm_run(session, vcpu, &registers) &&
      has_syscall_before(session, vcpu, registers.rip))
    set_parked(session, vcpu, registers, true);
}

static void on_event_stop(struct session *session, struct vcpu *vcpu) {
  switch (vcpu->phase) {
  case PHASE_INTERRUPTED:
    park_or_walk(session, vcpu, false);
    break;
  case PHASE_WALKING: /* look_again() asked: it has not come to KVM_RUN */
    park_or_walk(session, vcpu, true);
    break;
  case PHASE_PARKING:
    vcpu->phase = PHASE_PARKED;
    break;
  case PHASE_RUNNING:
    reenter(session, vcpu);
    run_on(vcpu, 0);
    break;
  case PHASE_PARKED:
  case PHASE_GLANCED:
  case PHASE_GONE:
    break;
  }
}

/* A VMM may end a vCPU's thread and live on: it has unplugged it. The threads
 * of one that exits end one after the other. */
static bool has_ended(const struct session *session) {
  struct pollfd process = {session->pid_fd, POLLIN, 0};
  return poll(&process, 1, exit_timeout_ms) != 0;
}

static void vcpu_news(struct session *session, struct vcpu *vcpu, int status,
                      bool debug_exit) {
  struct tracee_stop stop = tracee_stop_of(status);
  vcpu->group_stop = stop.kind == TRACEE_GROUP_STOP;
  switch (stop.kind) {
  case TRACEE_EXITED:
    vcpu->phase = PHASE_GONE;
    session->gone |= !stop.quietly || has_ended(session);
    if (!session->gone)
      session->shared->vcpu[vcpu->index].state = KVMGDB_AGENT_VCPU_GONE;
    session->shared->vcpu[vcpu->index].registers_valid = 0;
    break;
  case TRACEE_SIGNAL_STOP:
    if (debug_exit)
      go_to_event_stop(vcpu);
    else
      on_signal(vcpu, stop.signal);
    break;
  case TRACEE_SYSCALL_STOP:
    on_syscall(session, vcpu);
    break;
  case TRACEE_GROUP_STOP:
    /* Somebody stopped the whole VMM: it must stay so until SIGCONT. */
    if (vcpu->phase == PHASE_RUNNING || vcpu->phase == PHASE_WALKING)
      tracee_resume(vcpu->tid, PTRACE_LISTEN, 0);
    else
      on_event_stop(session, vcpu);
    break;
  case TRACEE_EVENT_STOP:
    on_event_stop(session, vcpu);
    break;
  }
}

static struct vcpu *vcpu_of(struct session *session, pid_t tid) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].tid == tid && session->vcpu[i].seized)
      return &session->vcpu[i];
  return NULL;
}

void stop_take_news(struct session *session) {
  bool sigstop;
  pid_t tid;
  while ((tid = tracee_peek(&sigstop))) {
    struct vcpu *vcpu = vcpu_of(session, tid);
    /* Whoever takes the news of a signal takes the signal: if we died then, the
     * VMM would run on into the debug exit. So first the exit, then the news.
     */
    bool debug_exit = vcpu && sigstop && hold_if_debug_exit(session, vcpu);
    int status;
    if (!tracee_take(tid, &status))
      continue;
    if (tid == session->guardian)
      session->guardian = 0;
    if (vcpu)
      vcpu_news(session, vcpu, status, debug_exit);
  }
}

void stop_release(struct vcpu *vcpu) {
  if (vcpu->phase != PHASE_PARKED)
    return;
  vcpu->phase = PHASE_RUNNING;
  vcpu->unmoved = true;
  mark(vcpu);
  run_on(vcpu, 0);
}

void stop_sample(struct vcpu *vcpu) {
  vcpu->sampled = true;
  vcpu->phase = PHASE_INTERRUPTED;
  tracee_interrupt(vcpu->tid);
}

void stop_release_sampled(struct vcpu *vcpu) {
  vcpu->sampled = false;
  if (vcpu->phase == PHASE_PARKED) {
    stop_release(vcpu);
  } else if (vcpu->phase == PHASE_GLANCED) {
    vcpu->phase = PHASE_RUNNING;
    run_on(vcpu, 0);
  }
}

static bool is_wanted(const struct vcpu *vcpu, int which) {
  return vcpu->seized && vcpu->phase != PHASE_GONE &&
         (which == KVMGDB_AGENT_ALL || vcpu->index == which);
}

static struct vcpu *first_not_parked(struct session *session, int which) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (is_wanted(&session->vcpu[i], which) &&
        session->vcpu[i].phase != PHASE_PARKED)
      return &session->vcpu[i];
  return NULL;
}

/*
 * A walking thread that does not come to KVM_RUN (it waits in the VMM, or is
 * busy there) is stopped where it is, but only when it may stay there:
 * PTRACE_INTERRUPT ends some system calls (epoll among them) with -EINTR.
 */
static void look_again(struct session *session, int which) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (is_wanted(vcpu, which) && vcpu->phase == PHASE_WALKING &&
        may_stand(vcpu))
      tracee_interrupt(vcpu->tid);
  }
}

/*
 * Whether the VMM has paused. Its vCPUs then have nothing pending, although the
 * last exit that some of them show may be an access: KVM leaves it there when a
 * VMM has KVM_RUN complete an access and return at once. Whoever pauses waits
 * for a condition, all vCPUs do, and none of them moves.
 */
static bool has_paused(const struct session *session) {
  uint64_t now = now_ns();
  for (int i = 0; i < session->vcpu_count; i++) {
    const struct vcpu *vcpu = &session->vcpu[i];
    if (vcpu->phase == PHASE_GONE)
      continue;
    if (vcpu->phase == PHASE_PARKED) {
      if (vcpu->at_kvm_run)
        return false;
    } else if ((vcpu->phase != PHASE_WALKING && vcpu->phase != PHASE_RUNNING) ||
               (vcpu->phase == PHASE_WALKING &&
                now - vcpu->still_since < paused_ns) ||
               !discover_waits(session->pid, vcpu->tid)) {
      return false;
    }
  }
  return true;
}

static void note_pause(struct session *session) {
  bool paused = has_paused(session);
  for (int i = 0; paused && i < session->vcpu_count; i++)
    if (session->vcpu[i].phase == PHASE_WALKING)
      session->vcpu[i].paused = true;
}

static void let_all_go(struct session *session, int which) {
  uint64_t deadline = now_ns() + settle_ns;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!is_wanted(vcpu, which) || !vcpu->was_running)
      continue;
    while (vcpu->phase == PHASE_INTERRUPTED || vcpu->phase == PHASE_PARKING) {
      stop_take_news(session);
      if (!tracee_sleep(deadline))
        break;
    }
    if (vcpu->phase == PHASE_PARKED && !vcpu->event)
      stop_release(vcpu);
    else if (vcpu->phase != PHASE_PARKED && vcpu->phase != PHASE_GONE)
      vcpu->phase = PHASE_RUNNING;
  }
}

static void interrupt(struct session *session, int which) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!is_wanted(vcpu, which))
      continue;
    vcpu->was_running = vcpu->phase == PHASE_RUNNING;
    vcpu->paused = false;
    if (vcpu->was_running) {
      vcpu->phase = PHASE_INTERRUPTED;
      tracee_interrupt(vcpu->tid);
    }
  }
}

static bool is_held(const struct vcpu *vcpu) {
  return !vcpu->seized || vcpu->group_stop || vcpu->phase == PHASE_PARKED ||
         vcpu->phase == PHASE_WALKING || vcpu->phase == PHASE_GONE;
}

void stop_hold(struct session *session, uint64_t deadline) {
  interrupt(session, KVMGDB_AGENT_ALL);
  for (;;) {
    stop_take_news(session);
    bool held = true;
    for (int i = 0; i < session->vcpu_count; i++)
      held &= is_held(&session->vcpu[i]);
    if (held || !tracee_sleep(deadline))
      return;
  }
}

enum kvmgdb_agent_status stop_vcpus(struct session *session, int which,
                                    uint64_t deadline,
                                    struct agent_error *error) {
  interrupt(session, which);
  uint64_t look_at = now_ns() + look_again_ns;
  for (;;) {
    stop_take_news(session);
    if (session->gone)
      return agent_fail(error, KVMGDB_AGENT_GONE, 0, -1, 0);
    struct vcpu *late = first_not_parked(session, which);
    if (!late)
      return KVMGDB_AGENT_OK;
    uint64_t now = now_ns();
    if (now >= deadline) {
      let_all_go(session, which);
      return agent_fail(error, KVMGDB_AGENT_TIMEOUT, 0, late->index,
                        late->run->exit_reason);
    }
    if (now >= look_at) {
      note_pause(session);
      look_again(session, which);
      look_at = now + look_again_ns;
    }
    tracee_sleep(look_at < deadline ? look_at : deadline);
  }
}
