#ifndef KVMGDB_SYMBOLS_VARIABLES_H
#define KVMGDB_SYMBOLS_VARIABLES_H

#include "info.h"

/* Variables whose type is given, in a unit of their own. */
void info_put_variables(struct info *info,
                        const struct kvmgdb_debug_variable *variables,
                        size_t count, const struct kvmgdb_debug_percpu *percpu);

#endif
