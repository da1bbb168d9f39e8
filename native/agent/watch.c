#include "watch.h"
#include "guest_memory.h"
#include <errno.h>
#include <unistd.h>

static bool locate(struct session *session, struct breakpoint *breakpoint) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (guest_memory_locate(session, &session->vcpu[i], breakpoint->gva,
                            &breakpoint->gpa, &breakpoint->hva))
      return true;
  return false;
}

/* Aligned to its length, it lies in one page. */
static bool read_value(const struct session *session,
                       const struct breakpoint *breakpoint, uint64_t *value) {
  *value = 0;
  return pread(session->memory_fd, value, breakpoint->length,
               (off_t)breakpoint->hva) == (ssize_t)breakpoint->length;
}

enum kvmgdb_agent_status watch_prepare(struct session *session,
                                       struct breakpoint *breakpoint,
                                       struct agent_error *error) {
  enum kvmgdb_agent_status status = guest_memory_look(session, error);
  if (status)
    return status;
  if (!locate(session, breakpoint) ||
      !read_value(session, breakpoint, &breakpoint->value))
    return agent_fail(error, KVMGDB_AGENT_INVALID, EFAULT, -1,
                      (int64_t)breakpoint->gva);
  return KVMGDB_AGENT_OK;
}

const struct breakpoint *watch_changed(struct session *session) {
  for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++) {
    struct breakpoint *breakpoint = &session->stepped[i];
    uint64_t now;
    if (!breakpoint->used || !read_value(session, breakpoint, &now) ||
        now == breakpoint->value)
      continue;
    breakpoint->value = now;
    return breakpoint;
  }
  return NULL;
}
