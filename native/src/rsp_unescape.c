#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "error.h"
#include "rsp.h"

/*
 * Run lengths belong to the frame and escapes to the payload in it, so a run
 * repeats the byte that was sent, which may be an escape or half of one.
 */
struct unescaper {
  uint8_t *out;
  size_t length;
  size_t capacity;
  bool escaped; /* the byte before was an escape */
  bool begun;   /* there is a byte before */
  uint8_t last; /* that byte, as it was sent */
};

static bool put(struct unescaper *state, uint8_t sent) {
  state->begun = true;
  state->last = sent;
  if (!state->escaped && sent == RSP_ESCAPE) {
    state->escaped = true;
    return true;
  }
  if (state->length == state->capacity)
    return false;
  state->out[state->length++] = state->escaped ? sent ^ RSP_ESCAPE_BIT : sent;
  state->escaped = false;
  return true;
}

static bool put_run(struct unescaper *state, uint8_t count) {
  if (!state->begun || count < RSP_RUN_MIN + RSP_RUN_BIAS ||
      count > RSP_RUN_MAX + RSP_RUN_BIAS)
    return false;
  size_t copies = (size_t)count - RSP_RUN_BIAS;
  if (!state->escaped && state->last != RSP_ESCAPE) {
    if (copies > state->capacity - state->length)
      return false;
    memset(state->out + state->length, state->last, copies);
    state->length += copies;
    return true;
  }
  for (size_t i = 0; i < copies; i++)
    if (!put(state, state->last))
      return false;
  return true;
}

/* Copies whole blocks in which every byte stands for itself. */
static size_t put_plain(struct unescaper *state, const uint8_t *from,
                        size_t length, bool runs) {
  size_t done = 0;
  size_t room = state->capacity - state->length;
  if (length > room)
    length = room;
  for (; done + BLOCK <= length; done += BLOCK) {
    block bytes = block_load(from + done);
    block stops = block_equal(bytes, RSP_ESCAPE);
    if (runs)
      stops = block_or(stops, block_equal(bytes, RSP_RUN));
    if (block_mask(stops))
      break;
    block_store(state->out + state->length + done, bytes);
  }
  if (done) {
    state->begun = true;
    state->last = from[done - 1];
  }
  state->length += done;
  return done;
}

/* Returns how many bytes of the payload were good: all, or those before. */
static size_t unescape(struct unescaper *state, const uint8_t *sent,
                       size_t length, bool runs) {
  size_t i = 0;
  while (i < length) {
    if (!state->escaped)
      i += put_plain(state, sent + i, length - i, runs);
    /* A block with a stop in it: byte by byte. */
    size_t end = length - i < BLOCK ? length : i + BLOCK;
    for (; i < end; i++) {
      if (!runs || sent[i] != RSP_RUN) {
        if (!put(state, sent[i]))
          return i;
      } else if (i + 1 == length || !put_run(state, sent[i + 1])) {
        return i;
      } else {
        i++;
      }
    }
  }
  return length;
}

enum kvmgdb_status kvmgdb_rsp_unescape(const void *payload, size_t length,
                                       int runs, void *out, size_t capacity,
                                       size_t *out_length,
                                       struct kvmgdb_error *error) {
  if ((!payload && length) || (!out && capacity) || !out_length)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct unescaper state = {.out = out, .capacity = capacity};
  size_t good = unescape(&state, payload, length, runs);
  *out_length = state.length;
  if (good < length || state.escaped)
    return error_set(error, KVMGDB_ERR_INVALID, 0, good);
  return KVMGDB_OK;
}
