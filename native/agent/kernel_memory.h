/* Reading kernel memory through BPF, where the host permits it (CAP_BPF and
 * CAP_PERFMON, no lockdown): what KVM knows and does not tell. */
#ifndef KVMGDB_AGENT_KERNEL_MEMORY_H
#define KVMGDB_AGENT_KERNEL_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A descriptor of the reader, or -errno (EPERM: not permitted). */
int kernel_memory_open(void);

/* Copies kernel memory; a bad address is false, never a fault. */
bool kernel_memory_read(int reader, uint64_t address, void *buffer,
                        size_t length);

/* The pointer at an address; 0 where it cannot be read. */
uint64_t kernel_memory_pointer(int reader, uint64_t address);

/* Address of the calling task's task_struct; 0 on failure. */
uint64_t kernel_memory_current_task(int reader);

#endif
