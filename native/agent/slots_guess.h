/* The memory slots of a virtual machine, guessed from the VMM's mappings. */
#ifndef KVMGDB_AGENT_SLOTS_GUESS_H
#define KVMGDB_AGENT_SLOTS_GUESS_H

#include "memory_slots.h"

/*
 * Takes the largest mapping for RAM, with the hole for devices where machines
 * have it, and lets KVM confirm that (KVM_TRANSLATE) where a parked vCPU has
 * paging on. False when there is no such mapping.
 */
bool slots_guess(struct session *session, struct region_list *list);

#endif
