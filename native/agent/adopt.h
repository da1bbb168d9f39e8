/* Taking in what the VMM has added while we are attached to it. */
#ifndef KVMGDB_AGENT_ADOPT_H
#define KVMGDB_AGENT_ADOPT_H

#include "session.h"

/*
 * Parks vCPUs that are new, and threads that run a vCPU whose own thread has
 * ended. The others must be parked. `control` is what a guardian must not keep.
 * A vCPU that does not stop in time (TIMEOUT) runs on, but is known.
 */
enum kvmgdb_agent_status adopt_vcpus(struct session *session, int control,
                                     uint64_t timeout_ns,
                                     struct agent_error *error);

#endif
