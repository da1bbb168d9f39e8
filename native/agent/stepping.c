#include "stepping.h"
#include "guest_memory.h"
#include "regs.h"
#include "trap_flag.h"
#include <errno.h>
#include <unistd.h>

void stepping_begin(struct session *session, struct vcpu *vcpu) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  if (!(vcpu->debug_applied & KVM_GUESTDBG_SINGLESTEP)) {
    journal->step_under_way = 0;
    return;
  }
  journal->step = (struct step_start){
      .rip = shown->regs.rip,
      .rsp = shown->regs.rsp,
      .rflags = shown->regs.rflags,
      .cs = shown->sregs.cs.selector,
      .ss = shown->sregs.ss.selector,
  };
  __atomic_store_n(&journal->step_under_way, 1, __ATOMIC_RELEASE);
}

static bool read_view(void *view, uint64_t gva, void *buffer, size_t size) {
  return guest_view_read(view, gva, buffer, size);
}

static enum kvmgdb_agent_status clear_byte(struct session *session,
                                           struct vcpu *vcpu, uint64_t gva,
                                           struct agent_error *error) {
  uint64_t gpa, hva;
  uint8_t byte;
  if (!guest_memory_locate(session, vcpu, gva, &gpa, &hva) ||
      pread(session->memory_fd, &byte, 1, (off_t)hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_HOST, EFAULT, vcpu->index, 0);
  byte &= (uint8_t) ~(TRAP_FLAG >> 8);
  if (pwrite(session->memory_fd, &byte, 1, (off_t)hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, vcpu->index, 0);
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status clear_r11(struct session *session,
                                          struct vcpu *vcpu,
                                          struct agent_error *error) {
  struct kvmgdb_agent_regs regs = session->shared->vcpu[vcpu->index].regs;
  regs.r11 &= ~(uint64_t)TRAP_FLAG;
  return regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_REGS, &regs, sizeof(regs),
                    error);
}

enum kvmgdb_agent_status stepping_end(struct session *session,
                                      struct vcpu *vcpu,
                                      struct agent_error *error) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  enum kvmgdb_agent_status status = regs_fetch(session, vcpu, error);
  if (status || !journal->step_under_way)
    return status;
  /* A flag of the guest's own is the guest's to keep. */
  if (!journal->own_trap_flag) {
    struct guest_view view = {session, vcpu, 0, 0};
    struct trap_flag_place place = trap_flag_find(
        &journal->step, &shown->regs, &shown->sregs, read_view, &view);
    if (place.kind == TRAP_FLAG_IN_MEMORY)
      status = clear_byte(session, vcpu, place.gva, error);
    else if (place.kind == TRAP_FLAG_IN_R11)
      status = clear_r11(session, vcpu, error);
  }
  __atomic_store_n(&journal->step_under_way, 0, __ATOMIC_RELEASE);
  return status;
}
