/*
 * What CPUID tells the guest: what KVM supports, with the identity of each
 * vCPU and one package of `count` cores (SDM volume 2, CPUID; APM volume 3,
 * appendix E). No nested virtualisation: a reset could not leave it.
 */
#include "cpuid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define ENTRIES_FIRST 128
#define ENTRIES_MAX 4096
#define LEAF1_ECX_VMX (1U << 5)
#define LEAF1_ECX_TSC_DEADLINE (1U << 24)
#define LEAF1_ECX_HYPERVISOR (1U << 31)
#define LEAF1_EDX_HTT (1U << 28)
#define EXTENDED1_ECX_SVM (1U << 2)
#define LEVEL_SMT 1
#define LEVEL_CORE 2

static struct kvm_cpuid2 *get_supported_cpuid(int kvm_fd,
                                              struct vmm_error *error) {
  for (unsigned room = ENTRIES_FIRST; room <= ENTRIES_MAX; room *= 2) {
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + room * sizeof(cpuid->entries[0]));
    if (!cpuid) {
      vmm_fail(error, "no host memory for CPUID");
      return NULL;
    }
    cpuid->nent = room;
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) == 0)
      return cpuid;
    int reason = errno;
    free(cpuid);
    if (reason != E2BIG) {
      vmm_fail(error, "KVM_GET_SUPPORTED_CPUID: %s", strerror(reason));
      return NULL;
    }
  }
  vmm_fail(error, "KVM_GET_SUPPORTED_CPUID: more than %d entries", ENTRIES_MAX);
  return NULL;
}

static unsigned bits_for(unsigned count) {
  unsigned bits = 0;
  while ((1U << bits) < count)
    bits++;
  return bits;
}

static void set_topology_level(struct kvm_cpuid_entry2 *entry, unsigned index,
                               unsigned count) {
  bool cores = entry->index == 1;
  entry->eax = cores ? bits_for(count) : 0;
  entry->ebx = cores ? count : entry->index == 0 ? 1 : 0;
  entry->ecx = entry->index | (cores               ? LEVEL_CORE << 8
                               : entry->index == 0 ? LEVEL_SMT << 8
                                                   : 0);
  entry->edx = index;
}

static void adjust(struct kvm_cpuid_entry2 *entry, unsigned index,
                   unsigned count, bool tsc_deadline) {
  switch (entry->function) {
  case 0x1:
    entry->ebx = (entry->ebx & 0xffff) | count << 16 | index << 24;
    entry->ecx &= ~(LEAF1_ECX_VMX | LEAF1_ECX_TSC_DEADLINE);
    entry->ecx |= LEAF1_ECX_HYPERVISOR;
    if (tsc_deadline)
      entry->ecx |= LEAF1_ECX_TSC_DEADLINE;
    entry->edx &= ~LEAF1_EDX_HTT;
    if (count > 1)
      entry->edx |= LEAF1_EDX_HTT;
    break;
  case 0x4:
    /* Cores per package; caches are not shared between threads. */
    if (entry->eax & 0x1f)
      entry->eax = (entry->eax & 0x3fff) |
                   ((1U << (bits_for(count) > 6 ? 6 : bits_for(count))) - 1)
                       << 26;
    break;
  case 0xb:
  case 0x1f:
    set_topology_level(entry, index, count);
    break;
  case 0x80000001:
    entry->ecx &= ~EXTENDED1_ECX_SVM;
    break;
  case 0x80000008:
    /* Reserved on Intel, where the host reports zero. */
    if (entry->ecx)
      entry->ecx = (count - 1) | bits_for(count) << 12;
    break;
  case 0x8000001e:
    entry->eax = index;
    entry->ebx = index & 0xff;
    entry->ecx = 0;
    break;
  }
}

bool cpuid_set(int kvm_fd, int vm_fd, int vcpu_fd, unsigned index,
               unsigned count, struct vmm_error *error) {
  struct kvm_cpuid2 *cpuid = get_supported_cpuid(kvm_fd, error);
  if (!cpuid)
    return false;
  bool tsc_deadline =
      ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  for (unsigned i = 0; i < cpuid->nent; i++)
    adjust(&cpuid->entries[i], index, count, tsc_deadline);
  int result = ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid);
  int reason = errno;
  free(cpuid);
  if (result < 0)
    return vmm_fail(error, "KVM_SET_CPUID2: %s", strerror(reason));
  return true;
}
