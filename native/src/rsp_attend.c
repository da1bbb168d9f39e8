/*
 * Memory reads of a debugger at its prompt, from the received bytes to the
 * sent ones: GDB sends a handful of them in a row and waits for each.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "error.h"
#include "memory.h"
#include "paging.h"
#include "rsp.h"

/* "$m", two numbers of at most 16 digits, a comma, "#cc". */
#define MAX_REQUEST 38
#define MIN_REQUEST 8
#define KNOWN_PAGES 8
/* Who finds so much time gone between two looks had no CPU meanwhile. */
#define PREEMPTED_NS 1000000
/* So many pages of at least 4 KiB the longest read can lie on. */
#define MAX_PIECES (KVMGDB_RSP_READ_MAX / HOST_PAGE_SIZE + 1)

struct request {
  char command; /* 'm' or 'x' */
  uint64_t address;
  uint64_t length;
};

/* What holds for one call, because the guest stands. */
struct turn {
  struct kvmgdb_memory *memory;
  const struct kvmgdb_paging *paging;
  struct {
    uint64_t gva;
    uint64_t size; /* 0: not used */
    uint64_t gpa;
  } page[KNOWN_PAGES];
  size_t oldest;
};

static uint64_t nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

static int digit_value(uint8_t digit) {
  if (digit >= '0' && digit <= '9')
    return digit - '0';
  digit |= 0x20;
  return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* 1 to 16 digits that `stop` ends; moves behind it. */
static bool take_number(const uint8_t **at, char stop, uint64_t *value) {
  const uint8_t *from = *at;
  *value = 0;
  for (int digit; (digit = digit_value(**at)) >= 0; ++*at) {
    if (*at - from == 16)
      return false;
    *value = *value << 4 | (unsigned)digit;
  }
  return *at > from && *(*at)++ == (uint8_t)stop;
}

/* Whether [data, data + length) is one whole memory read and nothing else. */
static bool parse(const uint8_t *data, size_t length, struct request *request) {
  if (length < MIN_REQUEST || length > MAX_REQUEST || data[0] != '$' ||
      (data[1] != 'm' && data[1] != 'x') || data[length - 3] != '#')
    return false;
  const uint8_t *at = data + 2, *end = data + length - 2;
  request->command = (char)data[1];
  /* The "#" before `end` stops both: no number is followed further. */
  if (!take_number(&at, ',', &request->address) ||
      !take_number(&at, '#', &request->length) || at != end)
    return false;
  int high = digit_value(end[0]), low = digit_value(end[1]);
  return high >= 0 && low >= 0 &&
         kvmgdb_rsp_checksum(data + 1, length - 4) == (high << 4 | low);
}

static bool translate(struct turn *turn, uint64_t gva, struct piece *piece) {
  for (size_t i = 0; i < KNOWN_PAGES; i++) {
    uint64_t offset = gva - turn->page[i].gva;
    if (offset < turn->page[i].size) {
      piece->gpa = turn->page[i].gpa + offset;
      piece->length = turn->page[i].size - offset;
      return true;
    }
  }
  struct kvmgdb_translation translation;
  if (kvmgdb_translate(turn->memory, turn->paging, gva, &translation, NULL) !=
      KVMGDB_OK)
    return false;
  uint64_t offset = gva & (translation.page_size - 1);
  turn->page[turn->oldest].gva = gva - offset;
  turn->page[turn->oldest].size = translation.page_size;
  turn->page[turn->oldest].gpa = translation.gpa - offset;
  turn->oldest = (turn->oldest + 1) % KNOWN_PAGES;
  piece->gpa = translation.gpa;
  piece->length = translation.page_size - offset;
  return true;
}

static bool read_all(struct turn *turn, uint64_t gva, uint8_t *data,
                     size_t length) {
  struct piece pieces[MAX_PIECES];
  size_t count = 0;
  for (size_t known = 0; known < length; count++) {
    if (!translate(turn, gva + known, &pieces[count]))
      return false;
    if (pieces[count].length > length - known)
      pieces[count].length = length - known;
    known += pieces[count].length;
  }
  size_t done;
  return memory_transfer(turn->memory, pieces, count, DIRECTION_READ, data,
                         &done, NULL) == KVMGDB_OK;
}

/* The frame that answers `request`, or 0 for what needs more than this. */
static size_t answer(struct turn *turn, const struct request *request,
                     void *reply) {
  uint8_t data[KVMGDB_RSP_READ_MAX];
  size_t length = request->length;
  if (request->length == 0 || request->length > sizeof(data) ||
      !range_is_valid(request->address, request->length) ||
      !read_all(turn, request->address, data, length))
    return 0;
  return request->command == 'm'
             ? kvmgdb_rsp_frame_hex("", 0, data, length, 1, reply)
             : kvmgdb_rsp_frame_binary("b", 1, data, length, 1, reply);
}

/* Returns how many bytes, from the start of `reply`, are still to be sent. */
static size_t send_reply(int socket, uint8_t *reply, size_t length) {
  size_t sent = 0;
  while (sent < length) {
    ssize_t result =
        send(socket, reply + sent, length - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result < 0 && errno != EINTR)
      break;
    if (result > 0)
      sent += (size_t)result;
  }
  memmove(reply, reply + sent, length - sent);
  return length - sent;
}

/* Callbacks are Python: they are not called from here. */
static bool has_callbacks(const struct kvmgdb_memory *memory) {
  for (size_t i = 0; i < memory->count; i++)
    if (memory->regions[i].kind == REGION_CALLBACK)
      return true;
  return false;
}

enum kvmgdb_status
kvmgdb_rsp_attend(struct kvmgdb_memory *memory,
                  const struct kvmgdb_paging *paging, int socket,
                  uint64_t awake_ns, uint64_t turn_ns, void *buffer,
                  size_t capacity, size_t *received, void *reply,
                  size_t *unsent, int *preempted, struct kvmgdb_error *error) {
  if (!buffer || !capacity || !received || !reply || !unsent || !preempted ||
      (memory && !paging))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct turn turn = {.memory = memory, .paging = paging};
  bool answers = memory && !has_callbacks(memory);
  *received = *unsent = 0;
  *preempted = 0;
  uint64_t start = nanoseconds(), asked = start, now = start;
  while (now - start < turn_ns && now - asked < awake_ns) {
    ssize_t result = recv(socket, buffer, capacity, MSG_DONTWAIT);
    if (result < 0 && (errno == EAGAIN || errno == EINTR)) {
      uint64_t last = now;
      now = nanoseconds();
      *preempted = now - last > PREEMPTED_NS;
      if (*preempted)
        return KVMGDB_OK;
      continue;
    }
    if (result <= 0)
      return KVMGDB_OK;
    struct request request;
    size_t size = 0;
    if (answers && parse(buffer, (size_t)result, &request))
      size = answer(&turn, &request, reply);
    if (!size) {
      *received = (size_t)result;
      return KVMGDB_OK;
    }
    *unsent = send_reply(socket, reply, size);
    if (*unsent)
      return KVMGDB_OK;
    asked = now = nanoseconds();
  }
  return KVMGDB_OK;
}
