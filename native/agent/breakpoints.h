/* The tables of breakpoints and watchpoints that the client has set. */
#ifndef KVMGDB_AGENT_BREAKPOINTS_H
#define KVMGDB_AGENT_BREAKPOINTS_H

#include "session.h"

/* Both need a stopped machine. */
enum kvmgdb_agent_status
breakpoints_insert(struct session *session,
                   const struct kvmgdb_agent_breakpoint *wanted,
                   struct agent_error *error);
enum kvmgdb_agent_status
breakpoints_remove(struct session *session,
                   const struct kvmgdb_agent_breakpoint *wanted,
                   struct agent_error *error);

/* Forgets all of them, and puts back planted bytes. */
void breakpoints_clear(struct session *session);

/* Index of the software breakpoint at a guest-virtual address of a parked
 * vCPU, or -1. */
int breakpoints_software_at(struct session *session, struct vcpu *vcpu,
                            uint64_t gva);

/* Whether a hardware breakpoint (`execution`) or a watchpoint is set there. */
bool breakpoints_hardware_at(const struct session *session, uint64_t gva,
                             bool execution);

#endif
