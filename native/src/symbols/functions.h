#ifndef KVMGDB_SYMBOLS_FUNCTIONS_H
#define KVMGDB_SYMBOLS_FUNCTIONS_H

#include "../linux/symbols.h"
#include "info.h"

/* The functions whose place and type are known, in units of code. */
enum kvmgdb_status info_put_functions(struct info *info,
                                      struct kvmgdb_debug *debug,
                                      const struct kvmgdb_symbols *symbols,
                                      struct kvmgdb_error *error);

#endif
