/*
 * The machine: KVM's objects, guest memory, devices, and whether it runs.
 *
 * States, as `status` on the control socket names them:
 *   paused    at the entry state, before the first instruction
 *   running
 *   stopping  told to stop; not all vCPUs stand still yet
 *   stopped   by command
 *   faulted   stopped by itself; `fault` says why
 *   resetting
 * How vCPUs stand still is told in run.c.
 */
#ifndef KVMGDB_VMM_MACHINE_H
#define KVMGDB_VMM_MACHINE_H

#include "boot.h"
#include "error.h"
#include "fault.h"
#include "memory.h"
#include "ports.h"
#include "vcpu.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>

enum machine_goal { GOAL_HOLD, GOAL_RUN, GOAL_STOP };

struct machine {
  int kvm_fd;
  int vm_fd;
  int wake_fd; /* eventfd: the event loop has something to look at */
  size_t run_size;
  struct guest_ram ram;
  struct boot_source source;
  struct boot_entry entry;
  struct ports ports;
  bool has_pit;
  struct kvm_irqchip irqchip[3]; /* as after power-up */
  struct kvm_pit_state2 pit;
  unsigned vcpu_count;
  struct vcpu *vcpus;

  pthread_mutex_t lock; /* guards all below; of a vCPU entered, parked, held */
  pthread_cond_t may_run;
  enum machine_goal goal;
  bool reset_pending;
  bool exit_pending;
  int exit_status;
  unsigned reset_count;
  struct fault fault;
};

/*
 * Creates the virtual machine and boots `source` (which has to outlive it)
 * up to its first instruction; no vCPU runs yet. `ports` has its devices.
 */
bool machine_create(uint64_t memory, unsigned vcpu_count,
                    const struct boot_source *source, int wake_fd,
                    struct machine *machine, struct vmm_error *error);

/*
 * Starts the vCPU threads: running, or paused before the first instruction.
 * All of them are known to KVM when it returns.
 */
bool machine_start(struct machine *machine, bool paused,
                   struct vmm_error *error);

/* A line of the 8259s and the I/O APIC. */
void machine_set_irq(struct machine *machine, unsigned irq, bool level);

/* ---- from the event loop ----------------------------------------------- */

const char *machine_state_name(struct machine *machine);
bool machine_cont(struct machine *machine, struct vmm_error *error);
void machine_stop(struct machine *machine);
/* Back to the entry state: running if it ran, else paused. */
void machine_reset(struct machine *machine);

/* Does what is pending and possible now (a reset, once all vCPUs stand). */
bool machine_settle(struct machine *machine, struct vmm_error *error);
/* True, and the status, if the guest or a command ended the machine. */
bool machine_exit_pending(struct machine *machine, int *status);
void machine_get_fault(struct machine *machine, struct fault *fault);

/* ---- from vCPU threads ------------------------------------------------- */

void machine_request_reset(struct machine *machine);
void machine_request_exit(struct machine *machine, int status);
void machine_report_fault(struct machine *machine, const struct fault *fault);

/* run.c: sends a signal to each vCPU thread, which ends its KVM_RUN. */
void machine_kick(struct machine *machine);
/* run.c: the thread of a vCPU. */
void *vcpu_thread(void *vcpu);

#endif
