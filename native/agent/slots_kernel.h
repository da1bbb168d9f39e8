/* The memory slots of a virtual machine, as KVM has them. */
#ifndef KVMGDB_AGENT_SLOTS_KERNEL_H
#define KVMGDB_AGENT_SLOTS_KERNEL_H

#include "memory_slots.h"

/* False where the host does not let us look, or keeps them in another way. */
bool slots_from_kernel(const struct session *session, struct region_list *list);

#endif
