/*
 * Where the serial port ends: the terminal (standard input and output), a new
 * pseudo-terminal, or nowhere.
 *
 * A terminal on standard input is put into raw mode, so that Ctrl-C reaches
 * the guest; Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends one Ctrl-A. Its
 * mode comes back however the process ends, SIGKILL excepted.
 */
#ifndef KVMGDB_VMM_CONSOLE_H
#define KVMGDB_VMM_CONSOLE_H

#include "error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONSOLE_QUEUE 4096

enum console_kind { CONSOLE_STDIO, CONSOLE_PTY, CONSOLE_NONE };

struct console {
  enum console_kind kind;
  int input_fd;  /* -1: no (more) input */
  int output_fd; /* -1: none */
  bool connected;
  bool raw;         /* a terminal in raw mode, with the Ctrl-A commands */
  bool escape_seen; /* the last byte was Ctrl-A */
  char pty_name[64];
  size_t head;
  size_t count; /* bytes typed that the guest has not taken */
  uint8_t queue[CONSOLE_QUEUE];
};

bool console_open(enum console_kind kind, struct console *console,
                  struct vmm_error *error);

/* Safe in a signal handler; does nothing where nothing was changed. */
void console_restore_terminal(void);

/* Reads what there is; returns false if Ctrl-A x was typed. */
bool console_read_input(struct console *console);

/* The next typed byte, if there is one. */
bool console_next(struct console *console, uint8_t *byte);

/* A pseudo-terminal: asks whether somebody has its other end open. */
void console_check_connection(struct console *console);

#endif
