/* KVM calls made by a parked vCPU thread of the VMM itself, which is the only
 * place KVM accepts them from. */
#ifndef KVMGDB_AGENT_INJECT_H
#define KVMGDB_AGENT_INJECT_H

#include "session.h"
#include <stddef.h>

/* Finds room for the trampoline in the VMM; nothing is written yet. */
enum kvmgdb_agent_status inject_find_cave(struct session *session,
                                          struct agent_error *error);
/* Removes the trampoline. */
void inject_remove_cave(struct session *session);

/*
 * ioctl(fd, request, data) in the thread of `vcpu`, which must be parked and
 * is parked again afterwards. `size` bytes of `data` go in and come back.
 * `*result` is what the call returned, -errno included.
 */
enum kvmgdb_agent_status inject_ioctl(struct session *session,
                                      struct vcpu *vcpu, int fd,
                                      unsigned long request, void *data,
                                      size_t size, long *result,
                                      struct agent_error *error);

/* The same for a call without a structure: `argument` is passed as it is. */
enum kvmgdb_agent_status
inject_plain_ioctl(struct session *session, struct vcpu *vcpu, int fd,
                   unsigned long request, unsigned long argument, long *result,
                   struct agent_error *error);

#endif
