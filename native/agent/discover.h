/* What a process is to KVM, found without touching it. */
#ifndef KVMGDB_AGENT_DISCOVER_H
#define KVMGDB_AGENT_DISCOVER_H

#include "session.h"

struct discovery {
  struct kvmgdb_agent_discovery info;
  struct kvmgdb_agent_found_vcpu vcpu[KVMGDB_AGENT_MAX_VCPUS];
};

/*
 * Fills `out` as far as the process can be looked into, also when it is
 * refused: NO_PROCESS, PERMISSION, NO_VM, SEVERAL_VMS, NO_VCPU, NOT_64BIT,
 * TRACED, CONFIDENTIAL.
 */
enum kvmgdb_agent_status discover(pid_t pid, struct discovery *out,
                                  struct agent_error *error);

/* Threads that may run a vCPU: not those of the kernel's own. */
bool discover_is_user_thread(pid_t pid, pid_t tid);

/* Whether a thread sleeps: it waits for something, also in KVM_RUN. */
bool discover_is_asleep(pid_t pid, pid_t tid);

/* Whether it waits for a condition or a lock of its own process. */
bool discover_waits(pid_t pid, pid_t tid);

/* Notes `tid` for the vCPU whose KVM_RUN it sleeps in, if it does. */
void discover_thread(struct discovery *out, pid_t tid);

/* Seccomp mode of a thread: 2 is a filter. */
uint32_t discover_seccomp(pid_t pid, pid_t tid);

#endif
