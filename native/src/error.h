/* Filling in struct kvmgdb_error, and the one map from errno to a status. */
#ifndef KVMGDB_ERROR_H
#define KVMGDB_ERROR_H

#include <kvmgdb/kvmgdb.h>

/* Records the failure in `error` (which may be NULL) and returns `status`. */
enum kvmgdb_status error_set(struct kvmgdb_error *error,
                             enum kvmgdb_status status, int os_error,
                             uint64_t address);

/* As error_set, with the status that `os_error` means. */
enum kvmgdb_status error_set_errno(struct kvmgdb_error *error, int os_error,
                                   uint64_t address);

/* Adds what a page walk knows: see struct kvmgdb_error. */
void error_set_entry(struct kvmgdb_error *error, int level, uint64_t entry);

#endif
