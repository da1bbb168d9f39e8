/*
 * Stopping vCPU threads where they may stand for ever, and letting them go.
 *
 * A parked thread is in an event-stop (so that it runs on if its tracer dies)
 * with registers that enter KVM_RUN again: the VMM never learns of the stop.
 */
#ifndef KVMGDB_AGENT_STOP_H
#define KVMGDB_AGENT_STOP_H

#include "session.h"

/*
 * Parks `which` (an index or KVMGDB_AGENT_ALL). On TIMEOUT those that this
 * call parked have been let go again. GONE when the VMM exits meanwhile.
 */
enum kvmgdb_agent_status stop_vcpus(struct session *session, int which,
                                    uint64_t deadline,
                                    struct agent_error *error);

/* Gets every vCPU to where no exit of KVM passes us by: parked, on its way from
 * system call to system call, or stopped with the whole VMM. */
void stop_hold(struct session *session, uint64_t deadline);

/*
 * Stops a running vCPU for a sample, without waiting: it is PARKED where it
 * executes guest code, and GLANCED wherever else it is. stop_vcpus() must not
 * be called before stop_release_sampled().
 */
void stop_sample(struct vcpu *vcpu);
void stop_release_sampled(struct vcpu *vcpu);

/* Lets a parked vCPU run on. */
void stop_release(struct vcpu *vcpu);

/* Takes all news of tracees; never sleeps. */
void stop_take_news(struct session *session);

/* Notes the signal mask of a stopped thread, which is about to be changed. */
int stop_note_signals(struct session *session, struct vcpu *vcpu,
                      uint64_t *mask);
/* Puts it back. */
void stop_restore_signals(struct session *session, struct vcpu *vcpu);

#endif
