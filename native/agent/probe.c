#include "probe.h"
#include "cleanup.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { PAGE_SIZE = 4096, MEMORY_SIZE = 2 * PAGE_SIZE, WATCHED = 0x800 };

/* Real mode, at CS:IP 0:0. */
static const uint8_t program[] = {
    0xa2, WATCHED & 0xff, WATCHED >> 8, /* mov [WATCHED], al */
    0xf4,                               /* hlt */
};

struct mapping {
  void *start;
  size_t size;
};

static void unmap(struct mapping *mapping) {
  if (mapping->start != MAP_FAILED)
    munmap(mapping->start, mapping->size);
}

#define scoped_mapping __attribute__((cleanup(unmap))) struct mapping

static bool prepare(int vcpu) {
  struct kvm_sregs sregs;
  if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
    return false;
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  struct kvm_regs regs = {.rip = 0, .rflags = 2};
  struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE |
                                             KVM_GUESTDBG_USE_HW_BP};
  debug.arch.debugreg[0] = WATCHED;
  debug.arch.debugreg[7] = 0x600 | 2 | 1 << 16; /* G0, writes, one byte */
  return !ioctl(vcpu, KVM_SET_SREGS, &sregs) &&
         !ioctl(vcpu, KVM_SET_REGS, &regs) &&
         !ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug);
}

bool probe_watchpoints(void) {
  scoped_fd kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  scoped_fd vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
  if (vm < 0 || ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000))
    return true;
  scoped_mapping memory = {mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                           MEMORY_SIZE};
  if (memory.start == MAP_FAILED)
    return true;
  memcpy(memory.start, program, sizeof(program));
  struct kvm_userspace_memory_region region = {
      .memory_size = MEMORY_SIZE,
      .userspace_addr = (uint64_t)(uintptr_t)memory.start};
  if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
    return true;
  scoped_fd vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (vcpu < 0 || size < (int)sizeof(struct kvm_run))
    return true;
  scoped_mapping run = {
      mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0),
      (size_t)size};
  if (run.start == MAP_FAILED || !prepare(vcpu) || ioctl(vcpu, KVM_RUN, 0))
    return true;
  return ((struct kvm_run *)run.start)->exit_reason != KVM_EXIT_HLT;
}
