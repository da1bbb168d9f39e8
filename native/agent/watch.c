#include "watch.h"
#include "memory_slots.h"
#include "regs.h"
#include <errno.h>
#include <unistd.h>

static enum kvmgdb_agent_status gpa_of(struct session *session, uint64_t gva,
                                       uint64_t *gpa,
                                       struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++) {
    struct kvm_translation translation = {.linear_address = gva};
    if (!regs_ioctl(session, &session->vcpu[i], KVMGDB_AGENT_TRANSLATE,
                    &translation, sizeof(translation), error) &&
        translation.valid) {
      *gpa = translation.physical_address;
      return KVMGDB_AGENT_OK;
    }
  }
  return agent_fail(error, KVMGDB_AGENT_INVALID, EFAULT, -1, (int64_t)gva);
}

static uint64_t hva_of(const struct region_list *list, uint64_t gpa) {
  for (int i = 0; i < list->count; i++) {
    const struct kvmgdb_agent_region *region = &list->region[i];
    if (gpa >= region->gpa && gpa - region->gpa < region->size)
      return region->hva + (gpa - region->gpa);
  }
  return 0;
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
  struct region_list list;
  enum kvmgdb_agent_status status =
      gpa_of(session, breakpoint->gva, &breakpoint->gpa, error);
  if (!status)
    status = memory_slots_find(session, &list, error);
  if (status)
    return status;
  breakpoint->hva = hva_of(&list, breakpoint->gpa);
  memory_slots_close(&list);
  if (!breakpoint->hva || !read_value(session, breakpoint, &breakpoint->value))
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
