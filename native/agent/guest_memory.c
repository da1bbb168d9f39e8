#include "guest_memory.h"
#include "memory_slots.h"
#include "regs.h"
#include <string.h>
#include <unistd.h>

enum { GUEST_PAGE = 4096 };

enum kvmgdb_agent_status guest_memory_look(struct session *session,
                                           struct agent_error *error) {
  struct region_list list;
  enum kvmgdb_agent_status status = memory_slots_list(session, &list, error);
  if (status)
    return status;
  memcpy(session->region, list.region, sizeof(session->region));
  session->region_count = list.count;
  return KVMGDB_AGENT_OK;
}

static uint64_t hva_of(const struct session *session, uint64_t gpa) {
  for (int i = 0; i < session->region_count; i++) {
    const struct kvmgdb_agent_region *region = &session->region[i];
    if (gpa >= region->gpa && gpa - region->gpa < region->size)
      return region->hva + (gpa - region->gpa);
  }
  return 0;
}

bool guest_memory_locate(struct session *session, struct vcpu *vcpu,
                         uint64_t gva, uint64_t *gpa, uint64_t *hva) {
  struct kvm_translation translation = {.linear_address = gva};
  struct agent_error ignored;
  if (regs_ioctl(session, vcpu, KVMGDB_AGENT_TRANSLATE, &translation,
                 sizeof(translation), &ignored) ||
      !translation.valid)
    return false;
  *gpa = translation.physical_address;
  *hva = hva_of(session, *gpa);
  if (!*hva && !guest_memory_look(session, &ignored))
    *hva = hva_of(session, *gpa);
  return *hva != 0;
}

static bool view_page(struct guest_view *view, uint64_t page) {
  uint64_t gpa;
  if (view->hva && view->page == page)
    return true;
  view->page = page;
  view->hva = 0;
  return guest_memory_locate(view->session, view->vcpu, page, &gpa, &view->hva);
}

bool guest_view_read(struct guest_view *view, uint64_t gva, void *buffer,
                     size_t size) {
  uint8_t *out = buffer;
  while (size) {
    uint64_t inside = gva % GUEST_PAGE;
    size_t piece = GUEST_PAGE - inside;
    if (piece > size)
      piece = size;
    if (!view_page(view, gva - inside) ||
        pread(view->session->memory_fd, out, piece,
              (off_t)(view->hva + inside)) != (ssize_t)piece)
      return false;
    gva += piece;
    out += piece;
    size -= piece;
  }
  return true;
}
