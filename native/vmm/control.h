/*
 * The control socket: a stream socket in the file system (or one inherited
 * and connected), on which a client sends lines and reads lines.
 *
 *   cont    run: from the entry, after stop, after a fault that can be mended
 *   stop    all vCPUs stand still
 *   reset   back to the entry state; runs on if it ran, else stays paused
 *   status  nothing but the answer
 *   quit    end the machine, exit status 0
 *
 * Every answer is one JSON object on one line, {"ok":true,...} with all that
 * status tells, or {"ok":false,"error":"..."}. `stop` and `reset` answer at
 * once; that it is done, and every other change of state, is told to all
 * clients by a line {"event":"state",...} of the same form.
 *
 *   state     paused running stopping stopped faulted resetting
 *   protocol  pvh linux bzimage multiboot flat
 *   vcpus, memory (bytes), pid, resets
 *   serial    name of the pseudo-terminal, or null
 *   fault     null, or {"vcpu","exit_reason","name","text","rip","resumable"};
 *             exit_reason is KVM's number (-1: KVM_RUN failed), rip is hex
 */
#ifndef KVMGDB_VMM_CONTROL_H
#define KVMGDB_VMM_CONTROL_H

#include "error.h"
#include "machine.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

#define CONTROL_CLIENTS 8
#define CONTROL_LINE 128
#define CONTROL_POLL_MAX (CONTROL_CLIENTS + 1)

struct control_client {
  int fd; /* -1: free */
  size_t length;
  char line[CONTROL_LINE];
};

struct control {
  int listen_fd; /* -1: none */
  char path[108];
  struct control_client clients[CONTROL_CLIENTS];
  struct machine *machine;
  const char *serial_name; /* NULL: no pseudo-terminal */
  const char *last_state;
};

/* `where` is a path or "fd:N"; NULL makes a control without any client. */
bool control_open(const char *where, struct control *control,
                  struct vmm_error *error);
void control_close(struct control *control);

/* Fills what to poll for; the number of entries. */
size_t control_poll_set(struct control *control,
                        struct pollfd set[CONTROL_POLL_MAX]);
/* Handles what poll found; true if a client said quit. */
bool control_handle(struct control *control, const struct pollfd *set,
                    size_t count);

/* Tells all clients if the state is another than last time. */
void control_announce(struct control *control);

#endif
