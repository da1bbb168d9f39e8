/*
 * One error type for the whole VMM: a sentence in lower case that says what is
 * wrong, in which input, and (after a semicolon) what mends it. It is always
 * the last parameter; only main.c and the event loop print.
 */
#ifndef KVMGDB_VMM_ERROR_H
#define KVMGDB_VMM_ERROR_H

#include <stdbool.h>

struct vmm_error {
  char text[512];
};

/* Fills `error` and returns false, so that a check reads `return vmm_fail(`. */
bool vmm_fail(struct vmm_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
