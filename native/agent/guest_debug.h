/* KVM_SET_GUEST_DEBUG: what KVM is to stop a vCPU for. */
#ifndef KVMGDB_AGENT_GUEST_DEBUG_H
#define KVMGDB_AGENT_GUEST_DEBUG_H

#include "session.h"

/*
 * `flags` are KVM_GUESTDBG_* beyond those that the breakpoints ask for.
 * `execution` false leaves hardware breakpoints out, not watchpoints: the
 * instruction under one is to be executed. Makes no call when nothing changes.
 */
enum kvmgdb_agent_status guest_debug_apply(struct session *session,
                                           struct vcpu *vcpu, uint32_t flags,
                                           bool execution,
                                           struct agent_error *error);

/* Ends it on every parked vCPU for which the journal knows of it, once the
 * tables of breakpoints are empty. */
enum kvmgdb_agent_status guest_debug_clear(struct session *session,
                                           struct agent_error *error);

#endif
