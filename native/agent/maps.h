/* The mappings of a process: /proc/PID/maps (proc(5)). */
#ifndef KVMGDB_AGENT_MAPS_H
#define KVMGDB_AGENT_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

struct mapping {
  uint64_t start, end;
  uint64_t offset, inode;
  unsigned device_major, device_minor;
  char flags[5]; /* "rwxp"; the last is 's' for shared */
  char name[256];
};

/* NULL when the process is gone or may not be looked into. */
FILE *maps_open(pid_t pid);

/* The next one, in the order of their addresses; false at the end. */
bool maps_next(FILE *maps, struct mapping *mapping);

#endif
