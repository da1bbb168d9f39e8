/*
 * What the thread of a vCPU does: KVM_RUN, and answering its exits.
 *
 * How a vCPU stands still
 *
 * Somebody may look at this process from outside with ptrace, as at any other
 * VMM: stop its vCPU threads, read registers through KVM's own ioctls, let
 * them go on. That is easiest while a thread is inside KVM_RUN. So:
 *
 *  - Paused before the first instruction (-S, or reset while stopped), the
 *    first vCPU is *held*: its registers are those of the entry, its run state
 *    is KVM_MP_STATE_HALTED with interrupts off, and its thread waits in
 *    KVM_RUN. To a debugger it looks like any halted vCPU: a ptrace interrupt
 *    ends KVM_RUN with -EINTR and the registers can be read and written. The
 *    other vCPUs wait in KVM_RUN for INIT and SIPI, as they always do.
 *    `cont` sends the thread a signal; it then makes the vCPU runnable and
 *    enters KVM_RUN again. If a debugger has stopped the thread meanwhile,
 *    the signal stays pending, and the thread does the same, still without
 *    one instruction executed in between, when the debugger lets it go on.
 *    So the order is: start with -S, attach, stop all vCPUs, `cont`; now the
 *    machine stands on its first instruction under the debugger's control.
 *
 *  - Stopped by `stop` or by a fault, a vCPU is *parked*: its thread waits on
 *    a condition variable in user space, in a futex call without a time-out
 *    (which restarts cleanly when interrupted). It parks only right after
 *    KVM_RUN returned -EINTR, so that no I/O is half done, or on the exit
 *    that is the fault, whose kvm_run page it leaves as it is.
 *
 * The signal (SIGUSR1) is blocked except inside KVM_RUN (KVM_SET_SIGNAL_MASK)
 * and is taken off only between two KVM_RUNs, before the thread looks at what
 * is wanted. So none can be lost between looking and entering, and neither
 * kvm_run->immediate_exit nor anything else in that page is ever written here.
 */
#include "machine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>

#define KERNEL_SIGSET_SIZE 8

void machine_kick(struct machine *machine) {
  for (unsigned i = 0; i < machine->vcpu_count; i++)
    pthread_kill(machine->vcpus[i].thread, SIGUSR1);
}

static bool set_signal_mask(struct vcpu *vcpu) {
  sigset_t inside;
  pthread_sigmask(SIG_SETMASK, NULL, &inside);
  sigdelset(&inside, SIGUSR1);
  struct {
    struct kvm_signal_mask header;
    uint8_t set[KERNEL_SIGSET_SIZE];
  } mask = {.header.len = KERNEL_SIGSET_SIZE};
  memcpy(mask.header.sigset, &inside, KERNEL_SIGSET_SIZE);
  return ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, &mask) == 0;
}

static void take_signals(void) {
  sigset_t kick;
  sigemptyset(&kick);
  sigaddset(&kick, SIGUSR1);
  const struct timespec at_once = {0, 0};
  while (sigtimedwait(&kick, NULL, &at_once) == SIGUSR1)
    ;
}

static void fail_vcpu(struct vcpu *vcpu, int run_errno) {
  struct fault fault;
  fault_describe(vcpu->index, vcpu->fd, vcpu->run, run_errno, &fault);
  machine_report_fault(vcpu->machine, &fault);
}

/* Waits while the machine is to stand still; the vCPU may run afterwards. */
static void wait_until_wanted(struct vcpu *vcpu) {
  struct machine *machine = vcpu->machine;
  struct vmm_error error;
  bool release_failed = false;
  pthread_mutex_lock(&machine->lock);
  if (machine->goal == GOAL_STOP || machine->reset_pending) {
    vcpu->parked = true;
    eventfd_write(machine->wake_fd, 1);
    while (machine->goal == GOAL_STOP || machine->reset_pending)
      pthread_cond_wait(&machine->may_run, &machine->lock);
    vcpu->parked = false;
  }
  if (vcpu->held && machine->goal == GOAL_RUN)
    release_failed = !vcpu_set_held(vcpu, false, &error);
  int reason = errno;
  pthread_mutex_unlock(&machine->lock);
  if (release_failed)
    fail_vcpu(vcpu, reason);
}

static void handle_io(struct vcpu *vcpu) {
  struct machine *machine = vcpu->machine;
  struct kvm_run *run = vcpu->run;
  uint8_t *data = (uint8_t *)run + run->io.data_offset;
  unsigned size = run->io.size;
  for (uint32_t i = 0; i < run->io.count; i++, data += size) {
    uint32_t value = 0;
    if (run->io.direction == KVM_EXIT_IO_IN) {
      value = ports_in(&machine->ports, run->io.port, size);
      memcpy(data, &value, size);
      continue;
    }
    memcpy(&value, data, size);
    int status;
    switch (ports_out(&machine->ports, run->io.port, size, value, &status)) {
    case PORTS_NONE:
      break;
    case PORTS_RESET:
      machine_request_reset(machine);
      break;
    case PORTS_EXIT:
      machine_request_exit(machine, status);
      break;
    }
  }
}

/* Nothing is at guest-physical addresses without RAM: all ones, as on a bus. */
static void handle_mmio(struct kvm_run *run) {
  if (!run->mmio.is_write)
    memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

/*
 * KVM learns which thread runs a vCPU (and tells it in debugfs) when that
 * first calls KVM_RUN. With a signal pending this call returns before any
 * instruction; if it fails otherwise, so will the next, which is answered.
 */
static void enter_once(struct vcpu *vcpu) {
  struct machine *machine = vcpu->machine;
  if (set_signal_mask(vcpu)) {
    pthread_kill(pthread_self(), SIGUSR1);
    ioctl(vcpu->fd, KVM_RUN, 0);
  } else {
    fail_vcpu(vcpu, errno);
  }
  pthread_mutex_lock(&machine->lock);
  vcpu->entered = true;
  pthread_cond_broadcast(&machine->may_run);
  pthread_mutex_unlock(&machine->lock);
}

void *vcpu_thread(void *argument) {
  struct vcpu *vcpu = argument;
  enter_once(vcpu);
  for (;;) {
    take_signals();
    wait_until_wanted(vcpu);
    /*
     * Answers exits until KVM_RUN is interrupted: a pending signal lets it
     * complete the last I/O and return before any instruction.
     */
    for (;;) {
      int result = ioctl(vcpu->fd, KVM_RUN, 0);
      if (result < 0 && (errno == EINTR || errno == EAGAIN))
        break;
      if (result < 0) {
        fail_vcpu(vcpu, errno);
        break;
      }
      if (vcpu->run->exit_reason == KVM_EXIT_IO) {
        handle_io(vcpu);
      } else if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
        handle_mmio(vcpu->run);
      } else if (vcpu->run->exit_reason != KVM_EXIT_INTR &&
                 vcpu->run->exit_reason != KVM_EXIT_IRQ_WINDOW_OPEN) {
        fail_vcpu(vcpu, 0);
        break;
      }
    }
  }
  return NULL;
}
