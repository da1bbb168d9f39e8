/* Registers of a stopped vCPU, and the KVM calls that a client may make. */
#ifndef KVMGDB_AGENT_REGS_H
#define KVMGDB_AGENT_REGS_H

#include "session.h"
#include <stddef.h>

/* Reads general and special registers of `vcpu` into the shared pages. */
enum kvmgdb_agent_status regs_fetch(struct session *session, struct vcpu *vcpu,
                                    struct agent_error *error);

/* Shows a stop, with the registers that were fetched, to the client: state,
 * reason and registers of `vcpu`. */
void regs_publish(struct session *session, struct vcpu *vcpu,
                  enum kvmgdb_agent_reason reason);

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
