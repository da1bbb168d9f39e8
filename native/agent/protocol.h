/* The agent's side of the socket: see kvmgdb/agent.h. */
#ifndef KVMGDB_AGENT_PROTOCOL_H
#define KVMGDB_AGENT_PROTOCOL_H

#include "session.h"

/*
 * Serves one client until it closes the socket, asks to detach, or the VMM is
 * gone and the client has closed. The VMM is left as it was found.
 */
void protocol_serve(pid_t pid, int control);

#endif
