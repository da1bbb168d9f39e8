#include "guest_debug.h"
#include "inject.h"
#include "perf.h"
#include <asm/kvm.h>

/* SDM volume 3, 17.2.4: GE, and the bit that is always set. */
enum { DR7_EXACT = 0x600 };

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

enum kvmgdb_agent_status guest_debug_apply(struct session *session,
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
  if (debug.control == vcpu->debug_applied && !vcpu->step_forgotten &&
      (!debug.control || generation == vcpu->debug_generation))
    return KVMGDB_AGENT_OK;

  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  /* While KVM steps it hides the flag, also one that is the guest's own. */
  if (!(vcpu->debug_applied & KVM_GUESTDBG_SINGLESTEP))
    journal->own_trap_flag = !!(shown->regs.rflags & TRAP_FLAG);
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
  vcpu->step_forgotten = false;
  vcpu->walk = debug.control && !session->perf;
  if (!debug.control) {
    if (session->perf)
      perf_enable(vcpu, false);
    __atomic_store_n(&journal->guest_debug, 0, __ATOMIC_RELEASE);
  }
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status guest_debug_clear(struct session *session,
                                           struct agent_error *error) {
  enum kvmgdb_agent_status result = KVMGDB_AGENT_OK;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!session->journal->vcpu[i].guest_debug)
      continue;
    vcpu->debug_applied = KVM_GUESTDBG_ENABLE; /* whatever it is: not none */
    enum kvmgdb_agent_status status =
        guest_debug_apply(session, vcpu, 0, true, error);
    if (status)
      result = status;
  }
  return result;
}
