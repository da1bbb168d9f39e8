/* Which thread runs a vCPU, where neither KVM nor /proc tells. */
#ifndef KVMGDB_AGENT_THREADS_H
#define KVMGDB_AGENT_THREADS_H

#include "discover.h"

/*
 * Finds the threads that `found` does not name yet, for at most `timeout_ns`:
 * by looking at threads that run, and at last by their names. NO_THREAD.
 */
enum kvmgdb_agent_status threads_find(struct discovery *found,
                                      uint64_t timeout_ns,
                                      struct agent_error *error);

#endif
