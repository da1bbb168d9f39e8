/* Samples of all vCPUs at random times around a rate, into shared memory. */
#ifndef KVMGDB_AGENT_SAMPLER_H
#define KVMGDB_AGENT_SAMPLER_H

#include "session.h"
#include <stddef.h>

/* `payload` is that of SAMPLE_START; *ring_fd is a descriptor of the sampler's,
 * which lives until sampler_stop(). */
enum kvmgdb_agent_status sampler_start(struct session *session,
                                       const void *payload, size_t length,
                                       int *ring_fd, struct agent_error *error);

/* Takes back everything that is under way for a sample. Needs to be called
 * before a vCPU is stopped for anything else. */
void sampler_settle(struct session *session);
void sampler_stop(struct session *session);

/* When the next round is due (CLOCK_MONOTONIC, ns); UINT64_MAX for never. */
uint64_t sampler_due(const struct session *session);

/* To be called after news were taken, and when a round is due. */
void sampler_run(struct session *session);

#endif
