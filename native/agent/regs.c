#include "regs.h"
#include "inject.h"
#include <string.h>

_Static_assert(sizeof(struct kvmgdb_agent_regs) == sizeof(struct kvm_regs),
               "registers are passed on as KVM lays them out");
_Static_assert(sizeof(struct kvmgdb_agent_sregs) == sizeof(struct kvm_sregs),
               "registers are passed on as KVM lays them out");
_Static_assert(offsetof(struct kvmgdb_agent_sregs, cr0) ==
                   offsetof(struct kvm_sregs, cr0),
               "registers are passed on as KVM lays them out");

static const unsigned long requests[] = {
    [KVMGDB_AGENT_GET_REGS] = KVM_GET_REGS,
    [KVMGDB_AGENT_SET_REGS] = KVM_SET_REGS,
    [KVMGDB_AGENT_GET_SREGS] = KVM_GET_SREGS,
    [KVMGDB_AGENT_SET_SREGS] = KVM_SET_SREGS,
    [KVMGDB_AGENT_GET_FPU] = KVM_GET_FPU,
    [KVMGDB_AGENT_SET_FPU] = KVM_SET_FPU,
    [KVMGDB_AGENT_GET_XSAVE] = KVM_GET_XSAVE,
    [KVMGDB_AGENT_SET_XSAVE] = KVM_SET_XSAVE,
    [KVMGDB_AGENT_GET_XCRS] = KVM_GET_XCRS,
    [KVMGDB_AGENT_SET_XCRS] = KVM_SET_XCRS,
    [KVMGDB_AGENT_GET_DEBUGREGS] = KVM_GET_DEBUGREGS,
    [KVMGDB_AGENT_SET_DEBUGREGS] = KVM_SET_DEBUGREGS,
    [KVMGDB_AGENT_GET_VCPU_EVENTS] = KVM_GET_VCPU_EVENTS,
    [KVMGDB_AGENT_SET_VCPU_EVENTS] = KVM_SET_VCPU_EVENTS,
    [KVMGDB_AGENT_GET_MP_STATE] = KVM_GET_MP_STATE,
    [KVMGDB_AGENT_SET_MP_STATE] = KVM_SET_MP_STATE,
    [KVMGDB_AGENT_GET_MSRS] = KVM_GET_MSRS,
    [KVMGDB_AGENT_SET_MSRS] = KVM_SET_MSRS,
    [KVMGDB_AGENT_TRANSLATE] = KVM_TRANSLATE,
    [KVMGDB_AGENT_GET_LAPIC] = KVM_GET_LAPIC,
};

/* The length that `payload` must have. 0: no such call. */
static size_t expected_length(uint32_t id, const void *payload, size_t length) {
  if (id >= sizeof(requests) / sizeof(requests[0]) || !requests[id])
    return 0;
  size_t size = _IOC_SIZE(requests[id]);
  if (id == KVMGDB_AGENT_GET_MSRS || id == KVMGDB_AGENT_SET_MSRS) {
    struct kvm_msrs head;
    if (length < sizeof(head))
      return 0;
    memcpy(&head, payload, sizeof(head));
    if (head.nmsrs > KVMGDB_AGENT_MAX_PAYLOAD / sizeof(struct kvm_msr_entry))
      return 0;
    size += head.nmsrs * sizeof(struct kvm_msr_entry);
  }
  return size;
}

/* What was written is what the client and the next stop are to see; what KVM
 * left in kvm_run is old then. */
static void note_written(struct session *session, struct vcpu *vcpu,
                         uint32_t id, const void *payload) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  if (id == KVMGDB_AGENT_SET_REGS)
    memcpy(&shown->regs, payload, sizeof(shown->regs));
  else if (id == KVMGDB_AGENT_SET_SREGS)
    memcpy(&shown->sregs, payload, sizeof(shown->sregs));
  else
    return;
  vcpu->sync_fresh = false;
  vcpu->step_forgotten |= id == KVMGDB_AGENT_SET_REGS;
}

enum kvmgdb_agent_status regs_ioctl(struct session *session, struct vcpu *vcpu,
                                    uint32_t id, void *payload, size_t length,
                                    struct agent_error *error) {
  size_t expected = expected_length(id, payload, length);
  if (!expected || expected != length)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, vcpu->index,
                      (int64_t)expected);
  long result;
  enum kvmgdb_agent_status status = inject_ioctl(
      session, vcpu, vcpu->fd, requests[id], payload, length, &result, error);
  if (status)
    return status;
  if (result < 0)
    return agent_fail(error, KVMGDB_AGENT_REFUSED, (int)-result, vcpu->index,
                      0);
  if (id == KVMGDB_AGENT_GET_MSRS || id == KVMGDB_AGENT_SET_MSRS) {
    uint32_t done = (uint32_t)result;
    memcpy(payload, &done, sizeof(done));
  }
  note_written(session, vcpu, id, payload);
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status regs_fetch(struct session *session, struct vcpu *vcpu,
                                    struct agent_error *error) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  if (vcpu->sync_fresh && session->sync_regs) {
    memcpy(&shown->regs, &vcpu->run->s.regs.regs, sizeof(shown->regs));
    memcpy(&shown->sregs, &vcpu->run->s.regs.sregs, sizeof(shown->sregs));
    return KVMGDB_AGENT_OK;
  }
  enum kvmgdb_agent_status status =
      regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_REGS, &shown->regs,
                 sizeof(shown->regs), error);
  if (!status)
    status = regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_SREGS, &shown->sregs,
                        sizeof(shown->sregs), error);
  return status;
}

void regs_publish(struct session *session, struct vcpu *vcpu,
                  enum kvmgdb_agent_reason reason) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  shown->exit_reason =
      vcpu->event_reason ? vcpu->event_reason : vcpu->run->exit_reason;
  shown->registers_valid = 1;
  shown->reason = reason;
  shown->state =
      vcpu->at_kvm_run ? KVMGDB_AGENT_VCPU_STOPPED : KVMGDB_AGENT_VCPU_HALTED;
}

void regs_publish_running(struct session *session, struct vcpu *vcpu) {
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  shown->registers_valid = 0;
  shown->reason = KVMGDB_AGENT_REASON_NONE;
  shown->state = KVMGDB_AGENT_VCPU_RUNNING;
}
