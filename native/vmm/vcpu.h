/*
 * One vCPU: its KVM descriptor, its state after power-up (to which a reset
 * returns) and its entry state. What it does while it runs is in run.c.
 */
#ifndef KVMGDB_VMM_VCPU_H
#define KVMGDB_VMM_VCPU_H

#include "boot.h"
#include "error.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>

struct machine;
struct vcpu_power_up;

struct vcpu {
  struct machine *machine;
  unsigned index; /* also its APIC identifier */
  int fd;
  struct kvm_run *run;
  struct vcpu_power_up *power_up;
  pthread_t thread;
  bool entered; /* its thread has been in KVM_RUN */
  bool parked;  /* stands still in user space */
  bool held;    /* stands still inside KVM_RUN; both: see run.c */
};

/* Creates vCPU `index` of the `count` in `vm_fd`. */
bool vcpu_create(int kvm_fd, int vm_fd, size_t run_size, unsigned index,
                 unsigned count, struct vcpu *vcpu, struct vmm_error *error);

/* As after power-up: the first runs, the others wait for INIT and SIPI. */
bool vcpu_reset(struct vcpu *vcpu, struct vmm_error *error);

/* Registers of the first vCPU at the entry of what was booted. */
bool vcpu_set_entry(struct vcpu *vcpu, const struct boot_entry *entry,
                    struct vmm_error *error);

/*
 * A held vCPU is halted with interrupts off: KVM_RUN waits in the kernel, and
 * no register changes, until it is no longer held.
 */
bool vcpu_set_held(struct vcpu *vcpu, bool held, struct vmm_error *error);

#endif
