/* Debug exits: what they mean, and how vCPUs go on from them. */
#ifndef KVMGDB_AGENT_DEBUG_H
#define KVMGDB_AGENT_DEBUG_H

#include "session.h"

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

/*
 * Whether vCPUs wait for their turn (see watch.h). Who has the turn may halt or
 * wait for another: debug_next_turn() is to be called when nothing happens.
 */
bool debug_takes_turns(const struct session *session);
void debug_next_turn(struct session *session);

#endif
