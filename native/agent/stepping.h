/* What is known of a step between its start and its end. */
#ifndef KVMGDB_AGENT_STEPPING_H
#define KVMGDB_AGENT_STEPPING_H

#include "session.h"

/* `vcpu` is about to run; its registers have been fetched. */
void stepping_begin(struct session *session, struct vcpu *vcpu);

/* It stands again: fetches its registers, and takes the trap flag of the step
 * out of what has saved it (see trap_flag.h). */
enum kvmgdb_agent_status stepping_end(struct session *session,
                                      struct vcpu *vcpu,
                                      struct agent_error *error);

#endif
