/* The `int3` bytes of software breakpoints in guest memory. */
#ifndef KVMGDB_AGENT_PLANT_H
#define KVMGDB_AGENT_PLANT_H

#include "session.h"

/* `place` is the index in the journal, and in the table of breakpoints. */
enum kvmgdb_agent_status plant_byte(struct session *session, int place,
                                    uint64_t hva, struct agent_error *error);
enum kvmgdb_agent_status plant_remove(struct session *session, int place,
                                      struct agent_error *error);

/* Puts back all that the journal knows of. */
void plant_remove_all(struct session *session);

#endif
