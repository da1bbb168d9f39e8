/*
 * Watchpoints on a host whose KVM watches no data (see probe.h): every vCPU is
 * stepped, and the watched bytes are compared after each step. Some 10,000
 * times slower than hardware; and a write of the same value is not seen.
 */
#ifndef KVMGDB_AGENT_WATCH_H
#define KVMGDB_AGENT_WATCH_H

#include "session.h"

/* Finds where the watched bytes lie, and what they are. */
enum kvmgdb_agent_status watch_prepare(struct session *session,
                                       struct breakpoint *breakpoint,
                                       struct agent_error *error);

/* The watchpoint whose bytes have changed since they were last looked at, or
 * NULL; they count as looked at now. */
const struct breakpoint *watch_changed(struct session *session);

#endif
