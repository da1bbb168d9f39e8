/* From a PID to a session, and back to a VMM as it was found. */
#ifndef KVMGDB_AGENT_ATTACH_H
#define KVMGDB_AGENT_ATTACH_H

#include "session.h"

/*
 * Opens all that is needed and finds every vCPU thread. Changes nothing in the
 * VMM: every refusal of discover() comes from here, and NO_THREAD, SECCOMP.
 */
enum kvmgdb_agent_status session_open(struct session *session, pid_t pid,
                                      struct agent_error *error);

/* Seizes the vCPU threads, and asks KVM what it can do. They run afterwards.
 * After an error nothing is left in the VMM. */
enum kvmgdb_agent_status session_attach(struct session *session,
                                        uint64_t timeout_ns,
                                        struct agent_error *error);

/* What each vCPU needs of both, one by one. */
enum kvmgdb_agent_status session_map_kvm_run(struct session *session,
                                             struct vcpu *vcpu,
                                             struct agent_error *error);
enum kvmgdb_agent_status session_seize(struct vcpu *vcpu,
                                       struct agent_error *error);
void session_set_valid_regs(struct session *session, struct vcpu *vcpu);

/* Puts everything back, as the journal says, and lets go of the VMM. */
enum kvmgdb_agent_status session_detach(struct session *session,
                                        struct agent_error *error);

/* The guardian's way in: seizes what the dead agent has left, and detaches. */
void session_recover(struct session *session);

void session_close(struct session *session);

#endif
