#include "debug.h"
#include "inject.h"
#include "perf.h"
#include "plant.h"
#include "probe.h"
#include "regs.h"
#include "stop.h"
#include "tracee.h"
#include <asm/kvm.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* SDM volume 3, 17.2: debug registers; 6.15: vectors. */
enum {
  DR6_HITS = 0xf,
  DR6_SINGLE_STEP = 1 << 14,
  DR7_EXACT = 0x600, /* GE, and the bit that is always set */
  VECTOR_DEBUG = 1,
  VECTOR_BREAKPOINT = 3,
};

/* One instruction takes microseconds, unless it waits (hlt) or needs the VMM.
 */
static const uint64_t step_timeout_ns = 500000000;
static const uint64_t stop_timeout_ns = 2000000000;

/* ---- KVM_SET_GUEST_DEBUG ---------------------------------------------- */

static uint64_t dr7_of(const struct session *session, bool execution) {
  static const uint8_t lengths[] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
  static const uint8_t types[] = {[KVMGDB_AGENT_HARDWARE] = 0,
                                  [KVMGDB_AGENT_WRITE] = 1,
                                  [KVMGDB_AGENT_ACCESS] = 3};
  uint64_t dr7 = DR7_EXACT;
  for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++) {
    const struct breakpoint *breakpoint = &session->hardware[i];
    if (!breakpoint->used ||
        (!execution && breakpoint->kind == KVMGDB_AGENT_HARDWARE))
      continue;
    dr7 |= UINT64_C(2) << (2 * i);
    dr7 |= (uint64_t)types[breakpoint->kind] << (16 + 4 * i);
    dr7 |= (uint64_t)lengths[breakpoint->length] << (18 + 4 * i);
  }
  return dr7;
}

/*
 * `flags` are KVM_GUESTDBG_* beyond those that the breakpoints ask for.
 * `execution` false leaves hardware breakpoints out, not watchpoints: the
 * instruction under one is to be executed.
 */
static enum kvmgdb_agent_status apply(struct session *session,
                                      struct vcpu *vcpu, uint32_t flags,
                                      bool execution,
                                      struct agent_error *error) {
  struct kvm_guest_debug debug = {.control = flags};
  if (session->software_count)
    debug.control |= KVM_GUESTDBG_USE_SW_BP;
  if (session->hardware_count) {
    debug.control |= KVM_GUESTDBG_USE_HW_BP;
    for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++)
      debug.arch.debugreg[i] = session->hardware[i].gva;
    debug.arch.debugreg[7] = dr7_of(session, execution);
  }
  if (debug.control)
    debug.control |= KVM_GUESTDBG_ENABLE;
  uint64_t generation = execution ? session->debug_generation : UINT64_MAX;
  if (debug.control == vcpu->debug_applied &&
      (!debug.control || generation == vcpu->debug_generation))
    return KVMGDB_AGENT_OK;

  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  if (debug.control) {
    __atomic_store_n(&journal->guest_debug, 1, __ATOMIC_RELEASE);
    if (session->perf)
      perf_enable(vcpu, true);
  }
  long result;
  enum kvmgdb_agent_status status =
      inject_ioctl(session, vcpu, vcpu->fd, KVM_SET_GUEST_DEBUG, &debug,
                   sizeof(debug), &result, error);
  if (status)
    return status;
  if (result < 0)
    return agent_fail(error, KVMGDB_AGENT_REFUSED, (int)-result, vcpu->index,
                      0);
  /* Exceptions are handed over once. */
  vcpu->debug_applied = debug.control & ~(uint32_t)(KVM_GUESTDBG_INJECT_BP |
                                                    KVM_GUESTDBG_INJECT_DB);
  vcpu->debug_generation = generation;
  vcpu->walk = debug.control && !session->perf;
  if (!debug.control) {
    if (session->perf)
      perf_enable(vcpu, false);
    __atomic_store_n(&journal->guest_debug, 0, __ATOMIC_RELEASE);
  }
  return KVMGDB_AGENT_OK;
}

/* ---- the table of breakpoints ------------------------------------------ */

static enum kvmgdb_agent_status require_stopped(struct session *session,
                                                struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].phase != PHASE_PARKED)
      return agent_fail(error, KVMGDB_AGENT_RUNNING, 0, i, 0);
  return KVMGDB_AGENT_OK;
}

static bool is_valid(const struct kvmgdb_agent_breakpoint *breakpoint) {
  switch (breakpoint->kind) {
  case KVMGDB_AGENT_SOFTWARE:
    return breakpoint->hva != 0;
  case KVMGDB_AGENT_HARDWARE:
    return breakpoint->length == 1;
  case KVMGDB_AGENT_WRITE:
  case KVMGDB_AGENT_ACCESS:
    return (breakpoint->length == 1 || breakpoint->length == 2 ||
            breakpoint->length == 4 || breakpoint->length == 8) &&
           breakpoint->gva % breakpoint->length == 0;
  }
  return false;
}

static bool is_same(const struct breakpoint *have,
                    const struct kvmgdb_agent_breakpoint *wanted) {
  if (!have->used || have->kind != wanted->kind)
    return false;
  if (wanted->kind == KVMGDB_AGENT_SOFTWARE)
    return have->hva == wanted->hva;
  return have->gva == wanted->gva && have->length == wanted->length;
}

struct table {
  struct breakpoint *entry;
  int size;
  int *count;
};

/* Tried once; what a host's KVM can do does not change. */
static bool has_watchpoints(void) {
  static enum { NOT_TRIED, YES, NO } known = NOT_TRIED;
  if (known == NOT_TRIED)
    known = probe_watchpoints() ? YES : NO;
  return known == YES;
}

static struct table table_of(struct session *session, uint32_t kind) {
  if (kind == KVMGDB_AGENT_SOFTWARE)
    return (struct table){session->software, KVMGDB_AGENT_MAX_BREAKPOINTS,
                          &session->software_count};
  return (struct table){session->hardware, KVMGDB_AGENT_MAX_HARDWARE,
                        &session->hardware_count};
}

enum kvmgdb_agent_status
debug_insert(struct session *session,
             const struct kvmgdb_agent_breakpoint *wanted,
             struct agent_error *error) {
  if (!is_valid(wanted))
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  enum kvmgdb_agent_status status = require_stopped(session, error);
  if (status)
    return status;
  bool watch =
      wanted->kind == KVMGDB_AGENT_WRITE || wanted->kind == KVMGDB_AGENT_ACCESS;
  if (watch && !has_watchpoints())
    return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, 0);
  struct table table = table_of(session, wanted->kind);
  int place = -1;
  for (int i = table.size - 1; i >= 0; i--) {
    if (is_same(&table.entry[i], wanted))
      return KVMGDB_AGENT_OK;
    if (!table.entry[i].used)
      place = i;
  }
  if (place < 0)
    return agent_fail(error, KVMGDB_AGENT_NO_FREE, 0, -1, table.size);
  if (wanted->kind == KVMGDB_AGENT_SOFTWARE) {
    status = plant_byte(session, place, wanted->hva, error);
    if (status)
      return status;
  }
  table.entry[place] = (struct breakpoint){
      .used = true,
      .kind = wanted->kind,
      .length = wanted->length,
      .gva = wanted->gva,
      .gpa = wanted->gpa,
      .hva = wanted->hva,
  };
  (*table.count)++;
  session->debug_generation++;
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status
debug_remove(struct session *session,
             const struct kvmgdb_agent_breakpoint *wanted,
             struct agent_error *error) {
  enum kvmgdb_agent_status status = require_stopped(session, error);
  if (status)
    return status;
  struct table table = table_of(session, wanted->kind);
  for (int i = 0; i < table.size; i++) {
    if (!is_same(&table.entry[i], wanted))
      continue;
    if (wanted->kind == KVMGDB_AGENT_SOFTWARE) {
      status = plant_remove(session, i, error);
      if (status)
        return status;
    }
    table.entry[i].used = false;
    (*table.count)--;
    session->debug_generation++;
    return KVMGDB_AGENT_OK;
  }
  return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
}

/* ---- what a debug exit means ------------------------------------------- */

/* The software breakpoint at a guest-virtual address, or -1. Another address
 * space may have other code at the same address, and the same code elsewhere:
 * what counts is where the byte lies. */
static int software_at(struct session *session, struct vcpu *vcpu,
                       uint64_t gva) {
  bool candidate = false;
  for (int i = 0; i < KVMGDB_AGENT_MAX_BREAKPOINTS && !candidate; i++)
    candidate = session->software[i].used &&
                ((session->software[i].gpa ^ gva) & 0xfff) == 0;
  if (!candidate)
    return -1;
  struct kvm_translation translation = {.linear_address = gva};
  struct agent_error ignored;
  if (regs_ioctl(session, vcpu, KVMGDB_AGENT_TRANSLATE, &translation,
                 sizeof(translation), &ignored) ||
      !translation.valid)
    return -1;
  for (int i = 0; i < KVMGDB_AGENT_MAX_BREAKPOINTS; i++)
    if (session->software[i].used &&
        session->software[i].gpa == translation.physical_address)
      return i;
  return -1;
}

struct meaning {
  enum kvmgdb_agent_reason reason; /* NONE: the guest's own exception */
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
        software_at(session, vcpu, pc) >= 0)
      return (struct meaning){KVMGDB_AGENT_REASON_BREAKPOINT, pc, 0};
    return (struct meaning){KVMGDB_AGENT_REASON_ERROR, pc,
                            vcpu->event_suberror};
  }
  if (debug->exception == VECTOR_BREAKPOINT) {
    if (software_at(session, vcpu, debug->pc) >= 0)
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
  if (vcpu->stepping && (debug->dr6 & DR6_SINGLE_STEP))
    return (struct meaning){KVMGDB_AGENT_REASON_STEP, pc, 0};
  return (struct meaning){0};
}

/* The guest executed an `int3` or single-stepped by itself. */
static enum kvmgdb_agent_status give_to_guest(struct session *session,
                                              struct vcpu *vcpu,
                                              struct agent_error *error) {
  if (vcpu->event_debug.exception == VECTOR_BREAKPOINT)
    return apply(session, vcpu, KVM_GUESTDBG_INJECT_BP, true, error);
  struct kvm_debugregs registers;
  enum kvmgdb_agent_status status =
      regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_DEBUGREGS, &registers,
                 sizeof(registers), error);
  if (status)
    return status;
  registers.dr6 |= vcpu->event_debug.dr6 & (DR6_HITS | DR6_SINGLE_STEP);
  status = regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_DEBUGREGS, &registers,
                      sizeof(registers), error);
  return status ? status
                : apply(session, vcpu, KVM_GUESTDBG_INJECT_DB, true, error);
}

/* Shows one parked vCPU; *is_event when it stopped by itself. */
static enum kvmgdb_agent_status show(struct session *session, struct vcpu *vcpu,
                                     bool *is_event,
                                     struct agent_error *error) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  *is_event = false;
  if (shown->registers_valid && !vcpu->event)
    return KVMGDB_AGENT_OK;
  enum kvmgdb_agent_status status =
      regs_publish(session, vcpu, KVMGDB_AGENT_REASON_REQUEST, error);
  if (status || !vcpu->event)
    return status;
  vcpu->event = false;
  struct meaning meaning = meaning_of(session, vcpu);
  if (!meaning.reason)
    return give_to_guest(session, vcpu, error);
  shown->reason = meaning.reason;
  shown->address = meaning.address;
  shown->detail = meaning.detail;
  vcpu->stepping = false;
  vcpu->unshown = true;
  *is_event = true;
  return KVMGDB_AGENT_OK;
}

static bool hardware_at(const struct session *session, uint64_t gva,
                        bool execution) {
  for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++) {
    const struct breakpoint *breakpoint = &session->hardware[i];
    if (breakpoint->used && breakpoint->gva == gva &&
        (breakpoint->kind == KVMGDB_AGENT_HARDWARE) == execution)
      return true;
  }
  return false;
}

/* Whether what was hit was removed before anybody saw the hit. */
static bool is_taken_away(struct session *session, struct vcpu *vcpu,
                          const struct kvmgdb_agent_vcpu *shown) {
  switch (shown->reason) {
  case KVMGDB_AGENT_REASON_BREAKPOINT:
    return software_at(session, vcpu, shown->address) < 0;
  case KVMGDB_AGENT_REASON_HARDWARE:
  case KVMGDB_AGENT_REASON_WATCH:
    return !hardware_at(session, shown->address,
                        shown->reason == KVMGDB_AGENT_REASON_HARDWARE);
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
  regs_publish_running(session, vcpu);
  vcpu->event_reason = 0;
  vcpu->unshown = false;
  stop_release(vcpu);
}

void debug_take_events(struct session *session) {
  bool held = false;
  for (int i = 0; i < session->vcpu_count; i++)
    held |= session->vcpu[i].event;
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
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].let_run)
      run(session, &session->vcpu[i]);
}

/* ---- resuming ----------------------------------------------------------- */

/* An internal error was held back to be shown: now the VMM gets it. */
static void give_to_vmm(struct vcpu *vcpu) {
  vcpu->parked.rip = vcpu->parked.rip + 2; /* past the syscall instruction */
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
 * Executes the one instruction under a breakpoint while all others stand.
 * `*moved` is false when it did not come to an end in time (hlt): the vCPU is
 * parked all the same.
 */
static enum kvmgdb_agent_status step_over(struct session *session,
                                          struct vcpu *vcpu, int software,
                                          bool block_irq,
                                          struct agent_error *error) {
  enum kvmgdb_agent_status status;
  if (software >= 0 && (status = plant_remove(session, software, error)))
    return status;
  status = apply(session, vcpu, step_flags(session, block_irq), false, error);
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
  int software = software_at(session, vcpu, pc);
  enum kvmgdb_agent_status status;
  if (software >= 0 || hardware_at(session, pc, true)) {
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
    *held = is_event || step;
    if (*held)
      return KVMGDB_AGENT_OK;
    step = false;
  }
  vcpu->stepping = step;
  uint32_t flags =
      step ? step_flags(session, action == KVMGDB_AGENT_STEP_BLOCK_IRQ) : 0;
  return apply(session, vcpu, flags, true, error);
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
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (actions[i] && vcpu->phase == PHASE_PARKED) {
      vcpu->let_run = true;
      run(session, vcpu);
    }
  }
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status debug_clear(struct session *session,
                                     struct agent_error *error) {
  plant_remove_all(session);
  memset(session->software, 0, sizeof(session->software));
  memset(session->hardware, 0, sizeof(session->hardware));
  session->software_count = session->hardware_count = 0;
  session->debug_generation++;
  enum kvmgdb_agent_status result = KVMGDB_AGENT_OK;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!session->journal->vcpu[i].guest_debug)
      continue;
    vcpu->debug_applied = KVM_GUESTDBG_ENABLE; /* whatever it is: not none */
    enum kvmgdb_agent_status status = apply(session, vcpu, 0, true, error);
    if (status)
      result = status;
  }
  return result;
}
