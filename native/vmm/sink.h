/*
 * Where characters of the guest go (standard output, a pseudo-terminal). vCPU
 * threads only ever put into a ring; the event loop writes it out when the
 * file takes it, so a terminal that stands still never holds a vCPU in user
 * space, where no debugger could stop it.
 */
#ifndef KVMGDB_VMM_SINK_H
#define KVMGDB_VMM_SINK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SINK_RING 65536

struct sink {
  pthread_mutex_t lock;
  int fd;
  int wake_fd;      /* eventfd of the event loop */
  bool dead;        /* the file failed: everything is dropped */
  bool drop_oldest; /* nobody listens: keep the latest, never wait */
  size_t head;
  size_t count;
  uint8_t ring[SINK_RING];
};

void sink_init(struct sink *sink, int fd, int wake_fd);

void sink_put(struct sink *sink, uint8_t byte);

/* False while a well-behaved guest should wait before it sends more. */
bool sink_has_room(struct sink *sink);

bool sink_is_empty(struct sink *sink);

/*
 * Writes some of it. Call when poll says POLLOUT: then a terminal or pipe
 * takes this much without blocking. Returns true if the ring had been full.
 */
bool sink_flush(struct sink *sink);

/* Writes all of it, for at most `milliseconds`; for the end of the process. */
void sink_drain(struct sink *sink, int milliseconds);

void sink_set_drop_oldest(struct sink *sink, bool drop_oldest);

#endif
