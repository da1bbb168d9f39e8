/* Guest-virtual memory as a parked vCPU sees it. */
#ifndef KVMGDB_AGENT_GUEST_MEMORY_H
#define KVMGDB_AGENT_GUEST_MEMORY_H

#include "session.h"
#include <stddef.h>

/* Reads anew where guest RAM lies; that of a stopped machine can be verified.
 */
enum kvmgdb_agent_status guest_memory_look(struct session *session,
                                           struct agent_error *error);

/* Where a guest-virtual address lies; false when it is not mapped, or to what
 * is no RAM. */
bool guest_memory_locate(struct session *session, struct vcpu *vcpu,
                         uint64_t gva, uint64_t *gpa, uint64_t *hva);

/* What a vCPU sees while it stands; begins as {session, vcpu}. */
struct guest_view {
  struct session *session;
  struct vcpu *vcpu;
  uint64_t page, hva; /* the last one that was translated; hva 0: none */
};

/* False when not all of it can be read. */
bool guest_view_read(struct guest_view *view, uint64_t gva, void *buffer,
                     size_t size);

#endif
