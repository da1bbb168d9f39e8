/* Things that end with their scope. */
#ifndef KVMGDB_CLEANUP_H
#define KVMGDB_CLEANUP_H

#include <stdlib.h>

static inline void cleanup_free(void *pointer) { free(*(void **)pointer); }

#define SCOPED_FREE __attribute__((cleanup(cleanup_free)))

#endif
