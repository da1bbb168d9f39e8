/*
 * What the agent and its guardian know of the VMM they are attached to.
 *
 * Contract of every function of the agent: it returns enum kvmgdb_agent_status
 * and, on anything but KVMGDB_AGENT_OK, fills the struct agent_error that is
 * its last parameter; it neither prints nor exits. All of it runs in the one
 * thread that is the tracer.
 */
#ifndef KVMGDB_AGENT_SESSION_H
#define KVMGDB_AGENT_SESSION_H

#include "kvmgdb/agent.h"
#include "trap_flag.h"
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

struct agent_error {
  enum kvmgdb_agent_status status;
  int os_error;
  int vcpu;
  int64_t detail;
};

/*
 * The journal: what has been changed in the VMM and not yet put back. It lies
 * in memory shared by agent and guardian, and each entry is written before the
 * change it is about, so that whoever survives can undo it.
 */
struct journal_vcpu {
  uint32_t valid_regs_found; /* kvm_run->kvm_valid_regs before us */
  uint8_t valid_regs_changed;
  uint8_t mask_changed;
  uint8_t guest_debug; /* KVM_SET_GUEST_DEBUG has been made */
  uint8_t step_under_way;
  uint8_t own_trap_flag; /* the guest's, when stepping began */
  uint64_t mask;         /* the thread's own signal mask */
  struct step_start step;
};

struct journal_plant {
  uint64_t hva;
  uint8_t planted;
  uint8_t original;
};

enum { CAVE_SIZE = 64 };

struct journal {
  uint64_t cave; /* HVA of the trampoline, 0: none written */
  uint8_t cave_found[CAVE_SIZE];
  struct journal_vcpu vcpu[KVMGDB_AGENT_MAX_VCPUS];
  struct journal_plant plant[KVMGDB_AGENT_MAX_BREAKPOINTS];
};

/*
 * Where a vCPU thread is on its way to a stop.
 *
 *   RUNNING --interrupt--> INTERRUPTED --at the edge of KVM_RUN--> PARKED
 *                              |                                     ^
 *                              outside                               |
 *                              v                                     |
 *                           WALKING --enters KVM_RUN, interrupted----+
 */
enum phase {
  PHASE_RUNNING,
  PHASE_INTERRUPTED, /* PTRACE_INTERRUPT is on its way */
  PHASE_WALKING,     /* from system call to system call, to KVM_RUN */
  PHASE_PARKING,     /* on its way from another ptrace-stop to an event-stop */
  PHASE_PARKED,      /* stands, and would run on by itself if we died */
  PHASE_GLANCED,     /* stands where it happened to be, for a sample only */
  PHASE_GONE,
};

struct vcpu {
  int index;
  int id;
  int fd; /* in the VMM */
  pid_t tid;
  uint32_t seccomp;
  struct kvm_run *run; /* our mapping of the same page */

  enum phase phase;
  bool seized;
  bool group_stop;  /* its last stop was the whole VMM's, by a signal */
  bool unmoved;     /* let go, but still held by that: where it was parked */
  bool walk;        /* resumed from system call to system call (no perf) */
  bool was_running; /* before the stop request that is being served */
  bool paused;      /* it waits, as all do: its VMM has paused */
  uint64_t still_since;           /* the last news of it while it walks */
  struct user_regs_struct parked; /* registers to run on with */
  bool at_kvm_run;                /* `parked` enters KVM_RUN again */
  bool sync_fresh;        /* kvm_run->s is of the last time KVM ran this vCPU */
  uint64_t mark_covers;   /* RFLAGS in kvm_run->s under our mark, 0: no mark */
  uint64_t known_syscall; /* a `syscall` instruction was seen there */

  int perf_fd;               /* stops the thread at debug exits, -1 */
  uint32_t debug_applied;    /* KVM_GUESTDBG_* */
  uint64_t debug_generation; /* of the breakpoint table it was applied from */
  /* The trap flag that KVM steps by may be gone: only KVM_SET_GUEST_DEBUG sets
   * it, for the instruction that is next. */
  bool step_forgotten;
  bool steps_to_user_mode; /* by `iretq` */
  uint64_t code_cr3, code_page,
      code_hva; /* of the last instruction looked at */
  bool event;   /* a debug exit was held back, and is not yet understood */
  uint32_t event_reason; /* its KVM_EXIT_* */
  uint32_t event_suberror;
  struct kvm_debug_exit_arch event_debug;
  bool stepping;
  uint64_t watch_hit; /* GVA that its step changed, not yet shown; or 0 */
  bool watching;      /* it steps for the sake of watchpoints */
  bool unshown;       /* an event that has not been the focus yet */
  bool let_run;       /* the client has resumed it */
  bool sampled;       /* it is being stopped for a sample only */
};

struct breakpoint {
  bool used;
  uint32_t kind;
  uint32_t length;
  uint64_t gva;
  uint64_t gpa;
  uint64_t hva;
  uint64_t value; /* STEPPED: what was there when it was last looked at */
};

struct sampler;
struct kvmgdb_memory;

struct session {
  pid_t pid;
  int pid_fd;
  int memory_fd; /* /proc/PID/mem */
  int vm_fd;     /* in the VMM */
  int vcpu_count;
  struct vcpu vcpu[KVMGDB_AGENT_MAX_VCPUS];
  struct kvmgdb_agent_shared *shared;
  int shared_fd;
  int event_fd;
  struct journal *journal;

  bool sync_regs;
  uint32_t guest_debug_supported; /* KVM_GUESTDBG_*, 0: not known */
  uint64_t cave;
  int region_count; /* 0: not looked at yet; see guest_memory.h */
  struct kvmgdb_agent_region region[KVMGDB_AGENT_MAX_REGIONS];

  struct breakpoint software[KVMGDB_AGENT_MAX_BREAKPOINTS];
  struct breakpoint hardware[KVMGDB_AGENT_MAX_HARDWARE];
  struct breakpoint stepped[KVMGDB_AGENT_MAX_HARDWARE]; /* see watch.h */
  int software_count;
  int hardware_count;
  int stepped_count;
  uint64_t debug_generation;
  bool perf; /* debug exits are caught by a perf event */
  bool gone;
  struct kvmgdb_memory *guest_memory; /* as last found, or NULL */
  struct sampler *sampler;            /* NULL: no samples are being taken */
  pid_t guardian;
  int guardian_pipe; /* the guardian sees its end when the agent ends */
};

enum kvmgdb_agent_status agent_fail(struct agent_error *error,
                                    enum kvmgdb_agent_status status,
                                    int os_error, int vcpu, int64_t detail);

uint64_t now_ns(void);

#endif
