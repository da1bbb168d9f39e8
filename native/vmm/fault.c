#include "fault.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

static const struct {
  uint32_t reason;
  const char *name;
} names[] = {
    {KVM_EXIT_UNKNOWN, "KVM_EXIT_UNKNOWN"},
    {KVM_EXIT_EXCEPTION, "KVM_EXIT_EXCEPTION"},
    {KVM_EXIT_HYPERCALL, "KVM_EXIT_HYPERCALL"},
    {KVM_EXIT_DEBUG, "KVM_EXIT_DEBUG"},
    {KVM_EXIT_HLT, "KVM_EXIT_HLT"},
    {KVM_EXIT_SHUTDOWN, "KVM_EXIT_SHUTDOWN"},
    {KVM_EXIT_FAIL_ENTRY, "KVM_EXIT_FAIL_ENTRY"},
    {KVM_EXIT_SET_TPR, "KVM_EXIT_SET_TPR"},
    {KVM_EXIT_TPR_ACCESS, "KVM_EXIT_TPR_ACCESS"},
    {KVM_EXIT_NMI, "KVM_EXIT_NMI"},
    {KVM_EXIT_INTERNAL_ERROR, "KVM_EXIT_INTERNAL_ERROR"},
    {KVM_EXIT_SYSTEM_EVENT, "KVM_EXIT_SYSTEM_EVENT"},
    {KVM_EXIT_X86_RDMSR, "KVM_EXIT_X86_RDMSR"},
    {KVM_EXIT_X86_WRMSR, "KVM_EXIT_X86_WRMSR"},
};

static const char *exit_name(uint32_t reason) {
  for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
    if (names[i].reason == reason)
      return names[i].name;
  return "KVM_EXIT_(other)";
}

__attribute__((format(printf, 2, 3))) static void
append(struct fault *fault, const char *format, ...) {
  size_t used = strlen(fault->text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(fault->text + used, sizeof(fault->text) - used, format, arguments);
  va_end(arguments);
}

static void describe_emulation(const struct kvm_run *run, struct fault *fault) {
  append(fault, "KVM cannot emulate the instruction at rip");
  /* ndata counts the words from `flags` on; the bytes need three of them. */
  if (run->emulation_failure.ndata < 3 ||
      !(run->emulation_failure.flags &
        KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
    return;
  unsigned size = run->emulation_failure.insn_size;
  if (size > sizeof(run->emulation_failure.insn_bytes))
    size = sizeof(run->emulation_failure.insn_bytes);
  append(fault, " (bytes");
  for (unsigned i = 0; i < size; i++)
    append(fault, " %02x", run->emulation_failure.insn_bytes[i]);
  append(fault, ")");
}

static void describe_internal(const struct kvm_run *run, struct fault *fault) {
  switch (run->internal.suberror) {
  case KVM_INTERNAL_ERROR_EMULATION:
    describe_emulation(run, fault);
    return;
  case KVM_INTERNAL_ERROR_SIMUL_EX:
    append(fault, "two exceptions at once that KVM cannot merge");
    break;
  case KVM_INTERNAL_ERROR_DELIVERY_EV:
    append(fault, "an event could not be delivered to the guest");
    break;
  case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
    append(fault, "the processor left the guest for an unexpected reason");
    break;
  default:
    append(fault, "KVM internal error %u", run->internal.suberror);
  }
  unsigned count = run->internal.ndata;
  if (count > 4)
    count = 4;
  for (unsigned i = 0; i < count; i++)
    append(fault, "%s%#llx", i == 0 ? " (data " : " ",
           (unsigned long long)run->internal.data[i]);
  if (count > 0)
    append(fault, ")");
}

static void describe_exit(const struct kvm_run *run, struct fault *fault) {
  fault->resumable = true;
  switch (run->exit_reason) {
  case KVM_EXIT_SHUTDOWN:
    /* AMD leaves the state undefined and KVM resets it: no way on. */
    fault->resumable = false;
    append(fault, "triple fault: an exception could not be delivered, nor the "
                  "double fault that followed");
    return;
  case KVM_EXIT_INTERNAL_ERROR:
    describe_internal(run, fault);
    return;
  case KVM_EXIT_FAIL_ENTRY:
    append(fault,
           "the processor refuses the guest state (hardware reason %#llx)",
           (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
    return;
  case KVM_EXIT_DEBUG:
    append(fault, "a debug exit at %#llx that nobody waited for",
           (unsigned long long)run->debug.arch.pc);
    return;
  case KVM_EXIT_UNKNOWN:
    append(fault, "the processor left the guest for unknown reason %#llx",
           (unsigned long long)run->hw.hardware_exit_reason);
    return;
  case KVM_EXIT_SYSTEM_EVENT:
    append(fault, "system event %u", run->system_event.type);
    return;
  default:
    append(fault, "exit %u, which this VMM does not handle", run->exit_reason);
  }
}

void fault_describe(unsigned vcpu, int vcpu_fd, const struct kvm_run *run,
                    int run_errno, struct fault *fault) {
  *fault = (struct fault){.valid = true, .vcpu = vcpu};
  if (run_errno != 0) {
    fault->exit_reason = -1;
    fault->name = "KVM_RUN";
    fault->resumable = true;
    append(fault, "KVM_RUN failed: %s", strerror(run_errno));
  } else {
    fault->exit_reason = run->exit_reason;
    fault->name = exit_name(run->exit_reason);
    describe_exit(run, fault);
  }
  struct kvm_regs regs;
  if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0)
    fault->rip = regs.rip;
}
