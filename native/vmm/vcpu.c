#include "vcpu.h"

#include "cpuid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define CR0_PE (1ULL << 0)
#define CR0_ET (1ULL << 4)
#define CR0_PG (1ULL << 31)
#define CR4_PAE (1ULL << 5)
#define EFER_LME (1ULL << 8)
#define EFER_LMA (1ULL << 10)
#define RFLAGS_FIXED 0x2
#define REAL_MODE_STACK 0x7c00
#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b
#define MSR_MTRR_DEFAULT 0x2ff
#define MTRR_ENABLED_WRITE_BACK 0x806
#define MSRS_MAX 1024

/* Everything a reset has to bring back, as KVM gives it out. */
struct vcpu_power_up {
  struct kvm_regs regs;
  struct kvm_sregs sregs;
  struct kvm_xsave xsave;
  struct kvm_xcrs xcrs;
  bool has_xcrs;
  struct kvm_lapic_state lapic;
  struct kvm_debugregs debugregs;
  struct kvm_vcpu_events events;
  struct kvm_mp_state mp_state;
  size_t msr_count;
  struct kvm_msr_entry msrs[MSRS_MAX];
};

static bool vcpu_ioctl(struct vcpu *vcpu, unsigned long request, void *argument,
                       const char *name, struct vmm_error *error) {
  if (ioctl(vcpu->fd, request, argument) < 0)
    return vmm_fail(error, "%s on vCPU %u: %s", name, vcpu->index,
                    strerror(errno));
  return true;
}
#define VCPU_IOCTL(vcpu, request, argument, error)                             \
  vcpu_ioctl(vcpu, request, argument, #request, error)

struct one_msr {
  struct kvm_msrs header;
  struct kvm_msr_entry entry;
};

/* Both return whether KVM knows the MSR; one that it does not is no error. */
static bool get_msr(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
  struct one_msr msr = {.header.nmsrs = 1, .entry.index = index};
  bool known = ioctl(vcpu->fd, KVM_GET_MSRS, &msr) == 1;
  *value = msr.entry.data;
  return known;
}

static bool set_msr(struct vcpu *vcpu, uint32_t index, uint64_t value) {
  struct one_msr msr = {.header.nmsrs = 1,
                        .entry = {.index = index, .data = value}};
  return ioctl(vcpu->fd, KVM_SET_MSRS, &msr) == 1;
}

static bool save_msrs(int kvm_fd, struct vcpu *vcpu, struct vmm_error *error) {
  struct vcpu_power_up *saved = vcpu->power_up;
  struct {
    struct kvm_msr_list header;
    uint32_t indices[MSRS_MAX];
  } list = {.header.nmsrs = MSRS_MAX};
  if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &list) < 0)
    return vmm_fail(error, "KVM_GET_MSR_INDEX_LIST: %s", strerror(errno));
  for (uint32_t i = 0; i < list.header.nmsrs && i < MSRS_MAX; i++) {
    uint32_t index = list.header.indices[i];
    /* The time-stamp counters stay as they are, equal on all vCPUs. */
    if (index == MSR_TSC || index == MSR_TSC_ADJUST)
      continue;
    uint64_t value;
    if (get_msr(vcpu, index, &value))
      saved->msrs[saved->msr_count++] =
          (struct kvm_msr_entry){.index = index, .data = value};
  }
  return true;
}

static bool save_power_up(int kvm_fd, struct vcpu *vcpu,
                          struct vmm_error *error) {
  struct vcpu_power_up *saved = calloc(1, sizeof(*saved));
  if (!saved)
    return vmm_fail(error, "no host memory for vCPU %u", vcpu->index);
  vcpu->power_up = saved;
  saved->has_xcrs = ioctl(vcpu->fd, KVM_GET_XCRS, &saved->xcrs) == 0;
  return VCPU_IOCTL(vcpu, KVM_GET_REGS, &saved->regs, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_SREGS, &saved->sregs, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_XSAVE, &saved->xsave, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_LAPIC, &saved->lapic, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_DEBUGREGS, &saved->debugregs, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_VCPU_EVENTS, &saved->events, error) &&
         VCPU_IOCTL(vcpu, KVM_GET_MP_STATE, &saved->mp_state, error) &&
         save_msrs(kvm_fd, vcpu, error);
}

bool vcpu_create(int kvm_fd, int vm_fd, size_t run_size, unsigned index,
                 unsigned count, struct vcpu *vcpu, struct vmm_error *error) {
  vcpu->index = index;
  vcpu->fd = ioctl(vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
  if (vcpu->fd < 0)
    return vmm_fail(error, "KVM_CREATE_VCPU %u: %s", index, strerror(errno));
  void *run =
      mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
  if (run == MAP_FAILED)
    return vmm_fail(error, "cannot map kvm_run of vCPU %u: %s", index,
                    strerror(errno));
  vcpu->run = run;
  if (!cpuid_set(kvm_fd, vm_fd, vcpu->fd, index, count, error))
    return false;
  /* No firmware runs that would set up memory types: all is write-back. */
  set_msr(vcpu, MSR_MTRR_DEFAULT, MTRR_ENABLED_WRITE_BACK);
  return save_power_up(kvm_fd, vcpu, error);
}

bool vcpu_reset(struct vcpu *vcpu, struct vmm_error *error) {
  struct vcpu_power_up *saved = vcpu->power_up;
  vcpu->held = false;
  if (!VCPU_IOCTL(vcpu, KVM_SET_MP_STATE, &saved->mp_state, error) ||
      !VCPU_IOCTL(vcpu, KVM_SET_SREGS, &saved->sregs, error) ||
      !VCPU_IOCTL(vcpu, KVM_SET_REGS, &saved->regs, error) ||
      !VCPU_IOCTL(vcpu, KVM_SET_XSAVE, &saved->xsave, error) ||
      !VCPU_IOCTL(vcpu, KVM_SET_DEBUGREGS, &saved->debugregs, error))
    return false;
  if (saved->has_xcrs && !VCPU_IOCTL(vcpu, KVM_SET_XCRS, &saved->xcrs, error))
    return false;
  for (size_t i = 0; i < saved->msr_count; i++) {
    /* Only what the guest changed: many of them refuse any write. */
    uint64_t value;
    if (get_msr(vcpu, saved->msrs[i].index, &value) &&
        value != saved->msrs[i].data &&
        !set_msr(vcpu, saved->msrs[i].index, saved->msrs[i].data))
      return vmm_fail(error, "MSR %#x of vCPU %u cannot be reset",
                      saved->msrs[i].index, vcpu->index);
  }
  return VCPU_IOCTL(vcpu, KVM_SET_LAPIC, &saved->lapic, error) &&
         VCPU_IOCTL(vcpu, KVM_SET_VCPU_EVENTS, &saved->events, error);
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type) {
  return (struct kvm_segment){
      .base = 0,
      .limit = 0xffffffff,
      .selector = selector,
      .type = type,
      .present = 1,
      .s = 1,
      .g = 1,
  };
}

/* Protected or long mode, flat segments, the descriptors of boot_put_gdt. */
static void set_flat(struct kvm_sregs *sregs, bool long_mode) {
  sregs->cs = flat_segment(BOOT_SELECTOR_CODE, 11);
  sregs->cs.l = long_mode;
  sregs->cs.db = !long_mode;
  struct kvm_segment data = flat_segment(BOOT_SELECTOR_DATA, 3);
  data.db = 1;
  sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
  sregs->tr = (struct kvm_segment){
      .limit = 0x67,
      .selector = BOOT_SELECTOR_TSS,
      .type = 11,
      .present = 1,
  };
  sregs->gdt.base = BOOT_GDT;
  sregs->gdt.limit = BOOT_GDT_ENTRIES * 8 - 1;
  sregs->idt.base = 0;
  sregs->idt.limit = 0;
  sregs->cr0 = CR0_PE | CR0_ET;
  if (long_mode) {
    sregs->cr0 |= CR0_PG;
    sregs->cr3 = BOOT_PAGE_TABLES;
    sregs->cr4 = CR4_PAE;
    sregs->efer = EFER_LME | EFER_LMA;
  }
}

static void set_real_segment(struct kvm_segment *segment, uint16_t selector) {
  segment->selector = selector;
  segment->base = (uint64_t)selector << 4;
}

bool vcpu_set_entry(struct vcpu *vcpu, const struct boot_entry *entry,
                    struct vmm_error *error) {
  struct kvm_sregs sregs = vcpu->power_up->sregs;
  struct kvm_regs regs = {
      .rip = entry->ip,
      .rax = entry->rax,
      .rbx = entry->rbx,
      .rsi = entry->rsi,
      .rflags = RFLAGS_FIXED,
  };
  if (entry->mode == CPU_REAL16) {
    set_real_segment(&sregs.cs, entry->segment);
    regs.rsp = REAL_MODE_STACK;
  } else {
    set_flat(&sregs, entry->mode == CPU_LONG64);
  }
  return VCPU_IOCTL(vcpu, KVM_SET_SREGS, &sregs, error) &&
         VCPU_IOCTL(vcpu, KVM_SET_REGS, &regs, error);
}

bool vcpu_set_held(struct vcpu *vcpu, bool held, struct vmm_error *error) {
  struct kvm_mp_state state = {held ? KVM_MP_STATE_HALTED
                                    : KVM_MP_STATE_RUNNABLE};
  if (!VCPU_IOCTL(vcpu, KVM_SET_MP_STATE, &state, error))
    return false;
  vcpu->held = held;
  return true;
}
