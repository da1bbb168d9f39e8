#ifndef KVMGDB_VMM_OPTIONS_H
#define KVMGDB_VMM_OPTIONS_H

#include "boot.h"
#include "console.h"
#include "error.h"

#include <stdbool.h>
#include <stdint.h>

struct options {
  const char *kernel;
  const char *initrd;       /* NULL: none */
  const char *command_line; /* never NULL */
  const char *control;      /* NULL: none */
  enum boot_protocol protocol;
  enum console_kind serial;
  uint64_t flat_address;
  uint64_t memory; /* bytes */
  unsigned vcpus;
  bool paused;
  bool exit_on_fault;
  bool help;
};

extern const char options_help[];

bool options_parse(int argc, char **argv, struct options *options,
                   struct vmm_error *error);

#endif
