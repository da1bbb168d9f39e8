/* The process that puts the VMM back when the agent is killed. */
#ifndef KVMGDB_AGENT_GUARDIAN_H
#define KVMGDB_AGENT_GUARDIAN_H

#include "session.h"

/*
 * Forks the guardian. It inherits the session as it is now, and its journal as
 * it will be. `control` is a descriptor that it must not keep open.
 */
enum kvmgdb_agent_status guardian_start(struct session *session, int control,
                                        struct agent_error *error);

/* Another takes its place, which knows of vCPUs that came after it. There is a
 * guardian at each moment. */
enum kvmgdb_agent_status guardian_renew(struct session *session, int control,
                                        struct agent_error *error);

/* Ends it: the session has been detached, nothing is left to watch over. */
void guardian_end(struct session *session);

#endif
