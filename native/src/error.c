#include "error.h"

#include <errno.h>

enum kvmgdb_status error_set(struct kvmgdb_error *error,
                             enum kvmgdb_status status, int os_error,
                             uint64_t address) {
  if (error)
    *error = (struct kvmgdb_error){
        .status = status, .os_error = os_error, .address = address};
  return status;
}

static enum kvmgdb_status status_of(int os_error) {
  switch (os_error) {
  case ENOMEM:
    return KVMGDB_ERR_NO_MEMORY;
  case EFAULT:
    return KVMGDB_ERR_NO_RAM;
  case ESRCH:
    return KVMGDB_ERR_GONE;
  case EPERM:
  case EACCES:
    return KVMGDB_ERR_PERMISSION;
  default:
    return KVMGDB_ERR_IO;
  }
}

enum kvmgdb_status error_set_errno(struct kvmgdb_error *error, int os_error,
                                   uint64_t address) {
  return error_set(error, status_of(os_error), os_error, address);
}

void error_set_entry(struct kvmgdb_error *error, int level, uint64_t entry) {
  if (!error)
    return;
  error->level = level;
  error->entry = entry;
}
