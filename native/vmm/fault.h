/*
 * Why a machine stopped by itself: an exit of KVM that the VMM cannot answer,
 * in words and in numbers.
 */
#ifndef KVMGDB_VMM_FAULT_H
#define KVMGDB_VMM_FAULT_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

struct fault {
  bool valid;
  bool resumable;      /* `cont` makes sense: registers can be mended */
  unsigned vcpu;       /* which one stopped */
  int64_t exit_reason; /* KVM_EXIT_*, or -1: KVM_RUN itself failed */
  const char *name;    /* "KVM_EXIT_SHUTDOWN"... */
  char text[320];      /* one sentence; ASCII without quotes */
  uint64_t rip;        /* of the vCPU at that moment */
};

/*
 * Reads `run` and the registers of `vcpu_fd`, and changes neither.
 * `run_errno` is what KVM_RUN failed with, or 0.
 */
void fault_describe(unsigned vcpu, int vcpu_fd, const struct kvm_run *run,
                    int run_errno, struct fault *fault);

#endif
