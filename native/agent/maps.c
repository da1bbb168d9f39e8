#include "maps.h"
#include <inttypes.h>

FILE *maps_open(pid_t pid) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/maps", pid);
  return fopen(path, "re");
}

bool maps_next(FILE *maps, struct mapping *mapping) {
  char line[8192]; /* a path may be 4 KiB, and is escaped */
  while (fgets(line, sizeof(line), maps)) {
    mapping->name[0] = 0;
    if (sscanf(line,
               "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64
               " %255[^\n]",
               &mapping->start, &mapping->end, mapping->flags, &mapping->offset,
               &mapping->device_major, &mapping->device_minor, &mapping->inode,
               mapping->name) >= 7)
      return true;
  }
  return false;
}
