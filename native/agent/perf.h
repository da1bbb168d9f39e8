/* The perf event that stops a vCPU thread at a debug exit, before the VMM sees
 * it, and costs nothing at any other exit. */
#ifndef KVMGDB_AGENT_PERF_H
#define KVMGDB_AGENT_PERF_H

#include "session.h"

/* Opens the events, disabled. False where the host does not permit it. */
bool perf_open(struct session *session);
bool perf_open_vcpu(struct vcpu *vcpu); /* the same for one */
void perf_close(struct session *session);
void perf_enable(struct vcpu *vcpu, bool enable);

#endif
