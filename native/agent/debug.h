/* Breakpoints, watchpoints and single steps, through KVM_SET_GUEST_DEBUG. */
#ifndef KVMGDB_AGENT_DEBUG_H
#define KVMGDB_AGENT_DEBUG_H

#include "session.h"

/* Both need a stopped machine. */
enum kvmgdb_agent_status
debug_insert(struct session *session,
             const struct kvmgdb_agent_breakpoint *breakpoint,
             struct agent_error *error);
enum kvmgdb_agent_status
debug_remove(struct session *session,
             const struct kvmgdb_agent_breakpoint *breakpoint,
             struct agent_error *error);

/* Resumes by one enum kvmgdb_agent_action for each vCPU. */
enum kvmgdb_agent_status debug_resume(struct session *session,
                                      const uint8_t *actions,
                                      struct agent_error *error);

/*
 * With the machine stopped: finds out what the debug exits that were held back
 * mean, gives the guest those that are its own, and shows every vCPU to the
 * client. `*events` is how many of them are events of the client.
 */
enum kvmgdb_agent_status debug_show_stop(struct session *session, int *events,
                                         struct agent_error *error);

/* To be called when a debug exit may have been held back: stops the machine
 * if it was an event of the client, else lets it run on. */
void debug_take_events(struct session *session);

/* Takes back all breakpoints of the guest, whose vCPUs are parked. */
enum kvmgdb_agent_status debug_clear(struct session *session,
                                     struct agent_error *error);

#endif
