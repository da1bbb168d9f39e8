/*
 * KVM steps a vCPU by the trap flag of its RFLAGS, and hides it from
 * KVM_GET_REGS; but what saves RFLAGS during the step saves the flag with it:
 * an interrupt or exception that is delivered first, `pushf` and `syscall`. A
 * program that gets it back later would die of a debug exception that is
 * nobody's.
 */
#ifndef KVMGDB_AGENT_TRAP_FLAG_H
#define KVMGDB_AGENT_TRAP_FLAG_H

#include "kvmgdb/agent.h"
#include <stdbool.h>
#include <stddef.h>

/* The registers before a step, as KVM_GET_REGS and KVM_GET_SREGS show them. */
struct step_start {
  uint64_t rip, rsp, rflags;
  uint64_t cs, ss; /* selectors */
};

/* Reads guest-virtual memory; false when not all of it can be read. */
typedef bool trap_flag_reader(void *context, uint64_t gva, void *buffer,
                              size_t size);

struct trap_flag_place {
  enum { TRAP_FLAG_NOWHERE, TRAP_FLAG_IN_MEMORY, TRAP_FLAG_IN_R11 } kind;
  uint64_t gva; /* IN_MEMORY: of the byte whose lowest bit it is */
};

enum { TRAP_FLAG = 1 << 8 };

/* Where the step from `from` to these registers has left the flag. */
struct trap_flag_place trap_flag_find(const struct step_start *from,
                                      const struct kvmgdb_agent_regs *regs,
                                      const struct kvmgdb_agent_sregs *sregs,
                                      trap_flag_reader *reader, void *context);

#endif
