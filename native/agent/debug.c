#include "debug.h"
#include "breakpoints.h"
#include "discover.h"
#include "guest_debug.h"
#include "guest_memory.h"
#include "plant.h"
#include "regs.h"
#include "stepping.h"
#include "stop.h"
#include "tracee.h"
#include "watch.h"
#include <asm/kvm.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* SDM volume 3, 17.2: debug registers; 6.15: vectors. */
enum {
  DR6_HITS = 0xf,
  DR6_SINGLE_STEP = 1 << 14,
  VECTOR_DEBUG = 1,
  VECTOR_BREAKPOINT = 3,
};

/* One instruction takes microseconds, unless it waits (hlt) or needs the VMM.
 */
static const uint64_t step_timeout_ns = 500000000;
static const uint64_t stop_timeout_ns = 2000000000;

/* ---- what a debug exit means ------------------------------------------- */

struct meaning {
  enum kvmgdb_agent_reason reason; /* NONE: the guest's own exception;
                                      REQUEST: ours, but nothing to show */
  uint64_t address;
  int64_t detail;
};

static uint64_t program_counter(const struct session *session,
                                const struct vcpu *vcpu) {
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  return shown->sregs.cs.base + shown->regs.rip;
}

static struct meaning meaning_of(struct session *session, struct vcpu *vcpu) {
  uint64_t pc = program_counter(session, vcpu);
  const struct kvm_debug_exit_arch *debug = &vcpu->event_debug;
  if (vcpu->event_reason == KVM_EXIT_INTERNAL_ERROR) {
    if (vcpu->event_suberror == KVM_INTERNAL_ERROR_EMULATION &&
        breakpoints_software_at(session, vcpu, pc) >= 0)
      return (struct meaning){KVMGDB_AGENT_REASON_BREAKPOINT, pc, 0};
    return (struct meaning){KVMGDB_AGENT_REASON_ERROR, pc,
                            vcpu->event_suberror};
  }
  if (debug->exception == VECTOR_BREAKPOINT) {
    if (breakpoints_software_at(session, vcpu, debug->pc) >= 0)
      return (struct meaning){KVMGDB_AGENT_REASON_BREAKPOINT, debug->pc, 0};
    return (struct meaning){0};
  }
  for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++) {
    const struct breakpoint *breakpoint = &session->hardware[i];
    if (breakpoint->used && (debug->dr6 & DR6_HITS & (1u << i)))
      return (struct meaning){breakpoint->kind == KVMGDB_AGENT_HARDWARE
                                  ? KVMGDB_AGENT_REASON_HARDWARE
                                  : KVMGDB_AGENT_REASON_WATCH,
                              breakpoint->gva, (int64_t)breakpoint->kind};
  }
  if (!(debug->dr6 & DR6_SINGLE_STEP))
    return (struct meaning){0};
  if (!vcpu->watch_hit) {
    const struct breakpoint *changed = watch_changed(session);
    vcpu->watch_hit = changed ? changed->gva : 0;
  }
  if (vcpu->watch_hit) {
    uint64_t where = vcpu->watch_hit;
    vcpu->watch_hit = 0;
    return (struct meaning){KVMGDB_AGENT_REASON_WATCH, where,
                            KVMGDB_AGENT_WRITE};
  }
  if (vcpu->stepping)
    return (struct meaning){KVMGDB_AGENT_REASON_STEP, pc, 0};
  return (struct meaning){.reason = vcpu->watching ? KVMGDB_AGENT_REASON_REQUEST
                                                   : KVMGDB_AGENT_REASON_NONE};
}

/* The guest executed an `int3` or single-stepped by itself. */
static enum kvmgdb_agent_status give_to_guest(struct session *session,
                                              struct vcpu *vcpu,
                                              struct agent_error *error) {
  uint32_t flags =
      vcpu->debug_applied & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ);
  if (vcpu->event_debug.exception == VECTOR_BREAKPOINT)
    return guest_debug_apply(session, vcpu, flags | KVM_GUESTDBG_INJECT_BP,
                             true, error);
  struct kvm_debugregs registers;
  enum kvmgdb_agent_status status =
      regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_DEBUGREGS, &registers,
                 sizeof(registers), error);
  if (status)
    return status;
  registers.dr6 |= vcpu->event_debug.dr6 & (DR6_HITS | DR6_SINGLE_STEP);
  status = regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_DEBUGREGS, &registers,
                      sizeof(registers), error);
  return status
             ? status
             : guest_debug_apply(session, vcpu, flags | KVM_GUESTDBG_INJECT_DB,
                                 true, error);
}

/* Shows one parked vCPU; *is_event when it stopped by itself. */
static enum kvmgdb_agent_status show(struct session *session, struct vcpu *vcpu,
                                     bool *is_event,
                                     struct agent_error *error) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  *is_event = false;
  if (shown->registers_valid && !vcpu->event)
    return KVMGDB_AGENT_OK;
  enum kvmgdb_agent_status status = stepping_end(session, vcpu, error);
  if (status)
    return status;
  regs_publish(session, vcpu, KVMGDB_AGENT_REASON_REQUEST);
  if (!vcpu->event)
    return KVMGDB_AGENT_OK;
  vcpu->event = false;
  struct meaning meaning = meaning_of(session, vcpu);
  if (!meaning.reason)
    return give_to_guest(session, vcpu, error);
  if (meaning.reason == KVMGDB_AGENT_REASON_REQUEST)
    return KVMGDB_AGENT_OK;
  shown->reason = meaning.reason;
  shown->address = meaning.address;
  shown->detail = meaning.detail;
  vcpu->stepping = false;
  vcpu->unshown = true;
  *is_event = true;
  return KVMGDB_AGENT_OK;
}

/* Whether what was hit was removed before anybody saw the hit. */
static bool is_taken_away(struct session *session, struct vcpu *vcpu,
                          const struct kvmgdb_agent_vcpu *shown) {
  switch (shown->reason) {
  case KVMGDB_AGENT_REASON_BREAKPOINT:
    return breakpoints_software_at(session, vcpu, shown->address) < 0;
  case KVMGDB_AGENT_REASON_HARDWARE:
  case KVMGDB_AGENT_REASON_WATCH:
    return !breakpoints_hardware_at(
        session, shown->address, shown->reason == KVMGDB_AGENT_REASON_HARDWARE);
  }
  return false;
}

/* The next event that the client has not seen becomes the focus. With
 * `actions`, only those of vCPUs that are to be resumed. */
static bool take_focus(struct session *session, const uint8_t *actions) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!vcpu->unshown || (actions && !actions[i]))
      continue;
    vcpu->unshown = false;
    const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[i];
    if (is_taken_away(session, vcpu, shown))
      continue;
    /* Another's event came first, and nobody waits for this step any more. */
    if (actions && actions[i] == KVMGDB_AGENT_CONTINUE &&
        shown->reason == KVMGDB_AGENT_REASON_STEP)
      continue;
    session->shared->focus = i;
    return true;
  }
  session->shared->focus = -1;
  return false;
}

static void notify(struct session *session) {
  uint64_t one = 1;
  __atomic_add_fetch(&session->shared->stop_count, 1, __ATOMIC_RELEASE);
  ssize_t written = write(session->event_fd, &one, sizeof(one));
  (void)written; /* only fails when it is readable already */
}

enum kvmgdb_agent_status debug_show_stop(struct session *session, int *events,
                                         struct agent_error *error) {
  *events = 0;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (vcpu->phase != PHASE_PARKED)
      continue;
    bool is_event;
    enum kvmgdb_agent_status status = show(session, vcpu, &is_event, error);
    if (status)
      return status;
    *events += is_event;
  }
  if (*events && take_focus(session, NULL))
    notify(session);
  return KVMGDB_AGENT_OK;
}

static void run(struct session *session, struct vcpu *vcpu) {
  stepping_begin(session, vcpu);
  regs_publish_running(session, vcpu);
  vcpu->event_reason = 0;
  vcpu->unshown = false;
  stop_release(vcpu);
}

/*
 * Those that step for the sake of watchpoints take turns, so that it is known
 * who changed what. The next one after vCPU `after` that stands gets its turn.
 */
static void give_turn(struct session *session, int after) {
  for (int i = 1; i <= session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[(after + i) % session->vcpu_count];
    if (vcpu->phase != PHASE_PARKED || !vcpu->watching || !vcpu->let_run ||
        vcpu->event)
      continue;
    run(session, vcpu);
    return;
  }
}

/* Lets everything run that the client has let run. */
static void run_all(struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!vcpu->let_run || vcpu->phase != PHASE_PARKED)
      continue;
    if (vcpu->watching)
      regs_publish_running(session, vcpu);
    else
      run(session, vcpu);
  }
  give_turn(session, -1);
}

bool debug_takes_turns(const struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].watching && session->vcpu[i].let_run &&
        session->vcpu[i].phase == PHASE_PARKED)
      return true;
  return false;
}

/* Whether those that have the turn sleep: a halted vCPU makes no step. */
static bool turns_sleep(const struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++) {
    const struct vcpu *vcpu = &session->vcpu[i];
    if (vcpu->watching && vcpu->phase != PHASE_PARKED &&
        !discover_is_asleep(session->pid, vcpu->tid))
      return false;
  }
  return true;
}

void debug_next_turn(struct session *session) {
  if (turns_sleep(session))
    give_turn(session, -1);
}

/*
 * A vCPU that steps for the sake of watchpoints has made a step. Most change
 * nothing: then it goes on, and nobody else is stopped.
 */
static bool is_done_quietly(struct session *session, struct vcpu *vcpu) {
  const struct kvm_debug_exit_arch *debug = &vcpu->event_debug;
  if (!vcpu->watching || vcpu->event_reason != KVM_EXIT_DEBUG ||
      debug->exception != VECTOR_DEBUG || (debug->dr6 & DR6_HITS) ||
      !(debug->dr6 & DR6_SINGLE_STEP))
    return false;
  if (vcpu->phase != PHASE_PARKED)
    return true;              /* its news will be back */
  struct agent_error ignored; /* debug_show_stop() will meet it again */
  const struct breakpoint *changed = watch_changed(session);
  if (changed)
    vcpu->watch_hit = changed->gva;
  if (changed || stepping_end(session, vcpu, &ignored))
    return false;
  vcpu->event = false;
  give_turn(session, vcpu->index);
  return true;
}

void debug_take_events(struct session *session) {
  bool held = false;
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].event && !is_done_quietly(session, &session->vcpu[i]))
      held = true;
  if (!held)
    return;
  struct agent_error error;
  int events = 0;
  /* A vCPU that cannot be stopped now stays running, and is shown so. */
  if (stop_vcpus(session, KVMGDB_AGENT_ALL, now_ns() + stop_timeout_ns,
                 &error) == KVMGDB_AGENT_GONE)
    return;
  bool failed = debug_show_stop(session, &events, &error);
  if (failed || events) {
    for (int i = 0; i < session->vcpu_count; i++)
      if (session->vcpu[i].phase == PHASE_PARKED)
        session->vcpu[i].let_run = false;
    if (failed) { /* it stands all the same: the client must know */
      session->shared->focus = error.vcpu;
      notify(session);
    }
    return;
  }
  run_all(session);
}

/* ---- resuming ----------------------------------------------------------- */

/* An internal error was held back to be shown: now the VMM gets it. */
static void give_to_vmm(struct vcpu *vcpu) {
  vcpu->parked.rip += SYSCALL_INSTRUCTION_SIZE;
  vcpu->parked.rax = 0;
  vcpu->run->exit_reason = vcpu->event_reason;
  vcpu->at_kvm_run = false;
  tracee_set_registers(vcpu->tid, &vcpu->parked);
}

static uint32_t step_flags(const struct session *session, bool block_irq) {
  uint32_t flags = KVM_GUESTDBG_SINGLESTEP;
  if (block_irq && (session->guest_debug_supported & KVM_GUESTDBG_BLOCKIRQ))
    flags |= KVM_GUESTDBG_BLOCKIRQ;
  return flags;
}

/*
 * Executes the one instruction under a breakpoint while all others stand. The
 * vCPU is parked afterwards, also when it did not come to an end (hlt).
 */
static enum kvmgdb_agent_status step_over(struct session *session,
                                          struct vcpu *vcpu, int software,
                                          bool block_irq,
                                          struct agent_error *error) {
  enum kvmgdb_agent_status status;
  if (software >= 0 && (status = plant_remove(session, software, error)))
    return status;
  status = guest_debug_apply(session, vcpu, step_flags(session, block_irq),
                             false, error);
  if (!status) {
    vcpu->stepping = true;
    uint64_t deadline = now_ns() + step_timeout_ns;
    run(session, vcpu);
    do {
      stop_take_news(session);
    } while (!(vcpu->event && vcpu->phase == PHASE_PARKED) && !session->gone &&
             tracee_sleep(deadline));
    status =
        stop_vcpus(session, vcpu->index, now_ns() + stop_timeout_ns, error);
  }
  struct agent_error again;
  if (software >= 0 && !session->gone &&
      plant_byte(session, software, session->software[software].hva, &again) &&
      !status) {
    status = again.status;
    *error = again;
  }
  return status;
}

/*
 * Whether the instruction under a breakpoint is to be executed. One that a vCPU
 * came to without a hit (it was stopped there, or sent there) is still to be
 * hit.
 */
static bool is_passed(const struct kvmgdb_agent_vcpu *shown, uint64_t pc,
                      bool step) {
  bool hit = shown->reason == KVMGDB_AGENT_REASON_BREAKPOINT ||
             shown->reason == KVMGDB_AGENT_REASON_HARDWARE;
  return step || (hit && shown->address == pc);
}

static void hit(struct session *session, struct vcpu *vcpu, int software,
                uint64_t pc) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  shown->reason = software >= 0 ? KVMGDB_AGENT_REASON_BREAKPOINT
                                : KVMGDB_AGENT_REASON_HARDWARE;
  shown->address = pc;
  shown->detail = software >= 0 ? 0 : KVMGDB_AGENT_HARDWARE;
  vcpu->unshown = true;
}

/* Gets one vCPU ready; *held when it has an event to show instead. */
static enum kvmgdb_agent_status prepare(struct session *session,
                                        struct vcpu *vcpu, uint8_t action,
                                        bool *held, struct agent_error *error) {
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  bool step = action != KVMGDB_AGENT_CONTINUE;
  if (!step && shown->reason == KVMGDB_AGENT_REASON_ERROR) {
    give_to_vmm(vcpu);
    return KVMGDB_AGENT_OK;
  }
  uint64_t pc = program_counter(session, vcpu);
  int software = breakpoints_software_at(session, vcpu, pc);
  enum kvmgdb_agent_status status;
  bool is_there = software >= 0 || breakpoints_hardware_at(session, pc, true);
  if (is_there && !is_passed(shown, pc, step)) {
    hit(session, vcpu, software, pc);
    *held = true;
    return KVMGDB_AGENT_OK;
  }
  if (is_there) {
    bool block_irq = action != KVMGDB_AGENT_STEP;
    status = step_over(session, vcpu, software, block_irq, error);
    if (status)
      return status;
    bool is_event = false;
    status = show(session, vcpu, &is_event, error);
    if (status)
      return status;
    if (is_event && !step && shown->reason == KVMGDB_AGENT_REASON_STEP) {
      is_event = false;
      vcpu->unshown = false;
    }
    vcpu->stepping = false;
    if (step && !is_event) { /* it waits: this is as far as a step goes */
      session->shared->vcpu[vcpu->index].reason = KVMGDB_AGENT_REASON_STEP;
      vcpu->unshown = true;
    }
    if (is_event || step) {
      *held = true;
      return KVMGDB_AGENT_OK;
    }
  }
  vcpu->stepping = step;
  vcpu->watching = !step && session->stepped_count;
  uint32_t flags = 0;
  if (step || vcpu->watching) {
    struct agent_error ignored; /* it is looked for again when needed */
    if (!session->region_count)
      guest_memory_look(session, &ignored);
    flags = step_flags(session, action == KVMGDB_AGENT_STEP_BLOCK_IRQ);
  }
  return guest_debug_apply(session, vcpu, flags, true, error);
}

enum kvmgdb_agent_status debug_resume(struct session *session,
                                      const uint8_t *actions,
                                      struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++) {
    if (actions[i] > KVMGDB_AGENT_STEP_BLOCK_IRQ)
      return agent_fail(error, KVMGDB_AGENT_INVALID, 0, i, actions[i]);
    if (actions[i] == KVMGDB_AGENT_STEP_BLOCK_IRQ &&
        !(session->guest_debug_supported & KVM_GUESTDBG_BLOCKIRQ))
      return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, i, 0);
  }
  if (take_focus(session, actions)) {
    notify(session);
    return KVMGDB_AGENT_OK;
  }
  while (watch_changed(session))
    ; /* by the client, or shown already: only what comes now counts */
  bool held = false;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!actions[i] || vcpu->phase != PHASE_PARKED)
      continue;
    enum kvmgdb_agent_status status =
        prepare(session, vcpu, actions[i], &held, error);
    if (status)
      return status;
  }
  if (held) {
    take_focus(session, NULL);
    notify(session);
    return KVMGDB_AGENT_OK;
  }
  for (int i = 0; i < session->vcpu_count; i++)
    session->vcpu[i].let_run |= actions[i] != KVMGDB_AGENT_STAY;
  run_all(session);
  return KVMGDB_AGENT_OK;
}
