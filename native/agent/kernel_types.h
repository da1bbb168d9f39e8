/* Where the running kernel keeps the members of its structures: its BTF
 * (Documentation/bpf/btf.rst). */
#ifndef KVMGDB_AGENT_KERNEL_TYPES_H
#define KVMGDB_AGENT_KERNEL_TYPES_H

#include <stdbool.h>
#include <stdint.h>

struct kernel_types;

/* "vmlinux", and "kvm" where KVM is a module. NULL where there is no BTF. */
struct kernel_types *kernel_types_open(void);
void kernel_types_close(struct kernel_types *types);

/* Offset in bytes of a member of "struct NAME", also one inside an unnamed
 * member; -1 when there is no such thing. */
int64_t kernel_types_offset(const struct kernel_types *types,
                            const char *structure, const char *member);

/* Size of "struct NAME" in bytes, -1 when there is none. */
int64_t kernel_types_size(const struct kernel_types *types,
                          const char *structure);

#endif
