/* When the agent gets a CPU of the host: as far as it may say. */
#ifndef KVMGDB_AGENT_PRIORITY_H
#define KVMGDB_AGENT_PRIORITY_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * A thread of real-time priority leaves no time to others, and would wait for
 * us without end where it is stopped: from here on we come before it.
 */
void priority_come_before(pid_t tid);

/*
 * While we sample, a vCPU that stands must not wait until it is our turn.
 * Between two rounds there is always a pause: see sampler_run().
 */
void priority_be_prompt(bool prompt);

#endif
