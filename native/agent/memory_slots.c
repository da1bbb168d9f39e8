#include "memory_slots.h"

enum kvmgdb_agent_status memory_slots_find(struct session *session,
                                           struct region_list *list,
                                           struct agent_error *error) {
  (void)session;
  *list = (struct region_list){0};
  return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, 0);
}
