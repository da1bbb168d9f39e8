#include "stepping.h"
#include "guest_memory.h"
#include "regs.h"
#include "user_step.h"
#include <asm/kvm.h>
#include <errno.h>
#include <stddef.h>
#include <unistd.h>

/* SDM volume 3, 17.2.3; 6.15. */
static const uint64_t dr6_single_step = 1 << 14;
static const uint8_t vector_debug = 1;

static bool read_view(void *view, uint64_t gva, void *buffer, size_t size) {
  return guest_view_read(view, gva, buffer, size);
}

/* The byte of a saved RFLAGS whose lowest bit is the trap flag. */
static enum kvmgdb_agent_status change_byte(struct session *session,
                                            struct vcpu *vcpu, uint64_t gva,
                                            bool set,
                                            struct agent_error *error) {
  enum { FLAG = TRAP_FLAG >> 8 };
  uint64_t gpa, hva;
  uint8_t byte;
  if (!guest_memory_locate(session, vcpu, gva, &gpa, &hva) ||
      pread(session->memory_fd, &byte, 1, (off_t)hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_HOST, EFAULT, vcpu->index, 0);
  byte = (uint8_t)(set ? byte | FLAG : byte & ~FLAG);
  if (pwrite(session->memory_fd, &byte, 1, (off_t)hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, vcpu->index, 0);
  return KVMGDB_AGENT_OK;
}

/* The next instruction's first bytes. Where its page lies is remembered: asking
 * KVM takes longer than the step. */
static bool read_code(struct session *session, struct vcpu *vcpu,
                      uint8_t code[USER_STEP_CODE]) {
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  if (vcpu->code_cr3 != shown->sregs.cr3)
    vcpu->code_hva = 0;
  struct guest_view view = {session, vcpu, vcpu->code_page, vcpu->code_hva};
  bool read = guest_view_read(&view, shown->sregs.cs.base + shown->regs.rip,
                              code, USER_STEP_CODE);
  vcpu->code_cr3 = shown->sregs.cr3;
  vcpu->code_page = view.page;
  vcpu->code_hva = view.hva;
  return read;
}

/* The step of an `iretq` becomes that of the program's instruction behind it,
 * which is where the flag is looked for afterwards. */
static void step_into_user_mode(struct session *session, struct vcpu *vcpu,
                                const uint8_t code[USER_STEP_CODE]) {
  struct journal_vcpu *journal = &session->journal->vcpu[vcpu->index];
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  struct guest_view view = {session, vcpu, 0, 0};
  struct exception_frame frame;
  struct agent_error ignored; /* it is a step without an end, then */
  if (journal->own_trap_flag ||
      !user_step_returns(code, &shown->regs, &shown->sregs, read_view, &view,
                         &frame))
    return;
  journal->step = (struct step_start){
      .rip = frame.rip,
      .rsp = frame.rsp,
      .rflags = frame.rflags,
      .cs = frame.cs,
      .ss = frame.ss,
  };
  __atomic_store_n(&journal->step_under_way, 1, __ATOMIC_RELEASE);
  vcpu->steps_to_user_mode = true;
  change_byte(session, vcpu,
              shown->regs.rsp + offsetof(struct exception_frame, rflags) + 1,
              true, &ignored);
}

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
  uint8_t code[USER_STEP_CODE];
  vcpu->steps_to_user_mode = false;
  if (read_code(session, vcpu, code) && user_step_loads_flags(code)) {
    vcpu->step_forgotten = true;
    step_into_user_mode(session, vcpu, code);
  }
  __atomic_store_n(&journal->step_under_way, 1, __ATOMIC_RELEASE);
}

static enum kvmgdb_agent_status clear_r11(struct session *session,
                                          struct vcpu *vcpu,
                                          struct agent_error *error) {
  struct kvmgdb_agent_regs regs = session->shared->vcpu[vcpu->index].regs;
  regs.r11 &= ~(uint64_t)TRAP_FLAG;
  return regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_REGS, &regs, sizeof(regs),
                    error);
}

static enum kvmgdb_agent_status clear_single_step(struct session *session,
                                                  struct vcpu *vcpu,
                                                  struct kvm_debugregs *debug,
                                                  struct agent_error *error) {
  debug->dr6 &= ~dr6_single_step;
  return regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_DEBUGREGS, debug,
                    sizeof(*debug), error);
}

/* The program goes on as if its kernel had never been called. */
static enum kvmgdb_agent_status
take_exception_back(struct session *session, struct vcpu *vcpu,
                    const struct exception_frame *frame,
                    struct agent_error *error) {
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  struct guest_view view = {session, vcpu, 0, 0};
  struct kvmgdb_agent_regs regs = shown->regs;
  struct kvmgdb_agent_sregs sregs = shown->sregs;
  struct kvm_debugregs debug;
  enum kvmgdb_agent_status status = regs_ioctl(
      session, vcpu, KVMGDB_AGENT_GET_DEBUGREGS, &debug, sizeof(debug), error);
  /* Without the bit it is not a step that the exception is about. */
  if (status || !(debug.dr6 & dr6_single_step) ||
      !user_step_segment(&shown->sregs, frame->cs, read_view, &view,
                         &sregs.cs) ||
      !user_step_segment(&shown->sregs, frame->ss, read_view, &view, &sregs.ss))
    return status;
  regs.rip = frame->rip;
  regs.rsp = frame->rsp;
  regs.rflags = frame->rflags & ~(uint64_t)TRAP_FLAG;
  status = regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_SREGS, &sregs,
                      sizeof(sregs), error);
  if (!status)
    status = regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_REGS, &regs,
                        sizeof(regs), error);
  return status ? status : clear_single_step(session, vcpu, &debug, error);
}

/* The exception of a step is on its way to the guest: it is taken from KVM. */
static enum kvmgdb_agent_status take_pending(struct session *session,
                                             struct vcpu *vcpu, bool *taken,
                                             struct agent_error *error) {
  struct kvm_vcpu_events events;
  struct kvm_debugregs debug;
  enum kvmgdb_agent_status status =
      regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_VCPU_EVENTS, &events,
                 sizeof(events), error);
  *taken = !status && events.exception.nr == vector_debug &&
           (events.exception.injected || events.exception.pending);
  if (!*taken)
    return status;
  events.exception.injected = events.exception.pending = 0;
  status = regs_ioctl(session, vcpu, KVMGDB_AGENT_SET_VCPU_EVENTS, &events,
                      sizeof(events), error);
  if (!status)
    status = regs_ioctl(session, vcpu, KVMGDB_AGENT_GET_DEBUGREGS, &debug,
                        sizeof(debug), error);
  return status ? status : clear_single_step(session, vcpu, &debug, error);
}

/* Our own interrupt came just when the step ended, and has taken the place of
 * its debug exit. */
static void end_without_exit(const struct session *session, struct vcpu *vcpu) {
  vcpu->event = true;
  vcpu->event_reason = KVM_EXIT_DEBUG;
  vcpu->event_debug = (struct kvm_debug_exit_arch){
      .exception = vector_debug,
      .pc = session->shared->vcpu[vcpu->index].regs.rip,
      .dr6 = dr6_single_step,
  };
}

/* At the end of a step in user mode, or into it. */
static enum kvmgdb_agent_status end_in_user_mode(struct session *session,
                                                 struct vcpu *vcpu,
                                                 struct agent_error *error) {
  bool taken = false;
  enum kvmgdb_agent_status status =
      vcpu->event ? KVMGDB_AGENT_OK
                  : take_pending(session, vcpu, &taken, error);
  if (!status && !vcpu->event && (taken || vcpu->steps_to_user_mode))
    end_without_exit(session, vcpu);
  return status;
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
    struct exception_frame frame;
    struct trap_flag_place place = trap_flag_find(
        &journal->step, &shown->regs, &shown->sregs, read_view, &view);
    if (user_step_delivered(&journal->step, &shown->regs, &shown->sregs,
                            read_view, &view, &frame))
      status = take_exception_back(session, vcpu, &frame, error);
    else if (place.kind == TRAP_FLAG_IN_MEMORY)
      status = change_byte(session, vcpu, place.gva, false, error);
    else if (place.kind == TRAP_FLAG_IN_R11)
      status = clear_r11(session, vcpu, error);
    if (!status && user_step_is_user(journal->step.cs) &&
        user_step_is_user(shown->sregs.cs.selector))
      status = end_in_user_mode(session, vcpu, error);
  }
  __atomic_store_n(&journal->step_under_way, 0, __ATOMIC_RELEASE);
  return status;
}
