#ifndef KVMGDB_VMM_CPUID_H
#define KVMGDB_VMM_CPUID_H

#include "error.h"

#include <linux/kvm.h>

/* Tells vCPU `index` of `count` what it is; before its first KVM_RUN. */
bool cpuid_set(int kvm_fd, int vm_fd, int vcpu_fd, unsigned index,
               unsigned count, struct vmm_error *error);

#endif
