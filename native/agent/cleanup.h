/* Things that end with the scope they were made in. */
#ifndef KVMGDB_AGENT_CLEANUP_H
#define KVMGDB_AGENT_CLEANUP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void close_descriptor(int *fd) {
  if (*fd >= 0)
    close(*fd);
}

static inline void close_stream(FILE **stream) {
  if (*stream)
    fclose(*stream);
}

static inline void close_directory(DIR **directory) {
  if (*directory)
    closedir(*directory);
}

static inline void free_pointer(void *pointer) { free(*(void **)pointer); }

#define scoped_fd __attribute__((cleanup(close_descriptor))) int
#define scoped_stream __attribute__((cleanup(close_stream))) FILE *
#define scoped_directory __attribute__((cleanup(close_directory))) DIR *
#define scoped_memory __attribute__((cleanup(free_pointer)))

#endif
