/* Which parts of the VMM's address space are the guest's RAM. */
#ifndef KVMGDB_AGENT_MEMORY_SLOTS_H
#define KVMGDB_AGENT_MEMORY_SLOTS_H

#include "session.h"

struct region_list {
  int count;
  int descriptor_count;
  struct kvmgdb_agent_region region[KVMGDB_AGENT_MAX_REGIONS];
  int descriptor[KVMGDB_AGENT_MAX_REGIONS];
};

/*
 * Reads the regions anew. The machine must be stopped for any of them to be
 * verified. memory_slots_close()
 * is the caller's to call.
 */
enum kvmgdb_agent_status memory_slots_find(struct session *session,
                                           struct region_list *list,
                                           struct agent_error *error);

/* The same without a descriptor of any; nothing is to be closed. */
enum kvmgdb_agent_status memory_slots_list(struct session *session,
                                           struct region_list *list,
                                           struct agent_error *error);

/* Makes session->guest_memory of a list. */
enum kvmgdb_agent_status memory_slots_open(struct session *session,
                                           const struct region_list *list,
                                           struct agent_error *error);

/* Closes the descriptors of the list. */
void memory_slots_close(struct region_list *list);

#endif
