/* Registers of a stopped vCPU, and the KVM calls that a client may make. */
#ifndef KVMGDB_AGENT_REGS_H
#define KVMGDB_AGENT_REGS_H

#include "session.h"
#include <stddef.h>

/* Shows a stop to the client: state, reason and registers of `vcpu`. */
enum kvmgdb_agent_status regs_publish(struct session *session,
                                      struct vcpu *vcpu,
                                      enum kvmgdb_agent_reason reason,
                                      struct agent_error *error);

/* Shows that `vcpu` runs. */
void regs_publish_running(struct session *session, struct vcpu *vcpu);

/*
 * Makes the KVM call `id` (enum kvmgdb_agent_ioctl) with `length` bytes of
 * `payload`, which it also fills. INVALID when they are not its structure,
 * REFUSED when KVM returns an error.
 */
enum kvmgdb_agent_status regs_ioctl(struct session *session, struct vcpu *vcpu,
                                    uint32_t id, void *payload, size_t length,
                                    struct agent_error *error);

#endif
