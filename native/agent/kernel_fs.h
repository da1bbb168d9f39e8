/* Files of tracefs and debugfs, wherever (and whether or not) mounted. */
#ifndef KVMGDB_AGENT_KERNEL_FS_H
#define KVMGDB_AGENT_KERNEL_FS_H

#include <stddef.h>
#include <stdint.h>

/*
 * A descriptor of the root of "tracefs" or "debugfs", or -errno. Where the
 * file system is not mounted, a private mount that nobody else sees is made
 * (it ends with the descriptor), which needs CAP_SYS_ADMIN.
 */
int kernel_fs_open(const char *type);

/* The number that a file below `root` holds, or -errno. */
int64_t kernel_fs_number(int root, const char *path);

#endif
