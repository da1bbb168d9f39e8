#include "sink.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* poll promises this much room on terminals (n_tty) and pipes alike. */
#define WRITE_CHUNK 256

void sink_init(struct sink *sink, int fd, int wake_fd) {
  pthread_mutex_init(&sink->lock, NULL);
  sink->fd = fd;
  sink->wake_fd = wake_fd;
  sink->dead = fd < 0;
  sink->drop_oldest = false;
  sink->head = 0;
  sink->count = 0;
}

void sink_put(struct sink *sink, uint8_t byte) {
  bool wake = false;
  pthread_mutex_lock(&sink->lock);
  if (!sink->dead) {
    if (sink->count == SINK_RING && sink->drop_oldest) {
      sink->head = (sink->head + 1) % SINK_RING;
      sink->count--;
    }
    if (sink->count < SINK_RING) {
      wake = sink->count == 0;
      sink->ring[(sink->head + sink->count) % SINK_RING] = byte;
      sink->count++;
    }
  }
  pthread_mutex_unlock(&sink->lock);
  if (wake)
    eventfd_write(sink->wake_fd, 1);
}

bool sink_has_room(struct sink *sink) {
  pthread_mutex_lock(&sink->lock);
  bool room = sink->dead || sink->drop_oldest || sink->count < SINK_RING;
  pthread_mutex_unlock(&sink->lock);
  return room;
}

bool sink_is_empty(struct sink *sink) {
  pthread_mutex_lock(&sink->lock);
  bool empty = sink->count == 0;
  pthread_mutex_unlock(&sink->lock);
  return empty;
}

bool sink_flush(struct sink *sink) {
  uint8_t chunk[WRITE_CHUNK];
  size_t length = 0;
  pthread_mutex_lock(&sink->lock);
  bool was_full = sink->count == SINK_RING;
  while (length < sizeof(chunk) && sink->count > 0) {
    chunk[length++] = sink->ring[sink->head];
    sink->head = (sink->head + 1) % SINK_RING;
    sink->count--;
  }
  pthread_mutex_unlock(&sink->lock);

  size_t done = 0;
  while (done < length) {
    ssize_t written = write(sink->fd, chunk + done, length - done);
    if (written < 0 && errno == EINTR)
      continue;
    if (written < 0) {
      /* A pseudo-terminal nobody reads is no failure: that part is lost. */
      if (errno != EAGAIN && errno != EIO) {
        pthread_mutex_lock(&sink->lock);
        sink->dead = true;
        sink->count = 0;
        pthread_mutex_unlock(&sink->lock);
      }
      break;
    }
    done += (size_t)written;
  }
  return was_full;
}

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void sink_drain(struct sink *sink, int milliseconds) {
  int64_t deadline = now_ms() + milliseconds;
  while (!sink_is_empty(sink)) {
    int64_t left = deadline - now_ms();
    if (left <= 0)
      return;
    struct pollfd ready = {.fd = sink->fd, .events = POLLOUT};
    if (poll(&ready, 1, (int)left) < 0 && errno != EINTR)
      return;
    if (ready.revents & POLLOUT)
      sink_flush(sink);
    else if (ready.revents)
      return;
  }
}

void sink_set_drop_oldest(struct sink *sink, bool drop_oldest) {
  pthread_mutex_lock(&sink->lock);
  sink->drop_oldest = drop_oldest;
  pthread_mutex_unlock(&sink->lock);
}
