/*
 * The event loop of the process: terminal, serial output, control socket,
 * signals, and what vCPU threads report. It never waits for a vCPU.
 */
#ifndef KVMGDB_VMM_LOOP_H
#define KVMGDB_VMM_LOOP_H

#include "console.h"
#include "control.h"
#include "machine.h"
#include "sink.h"

#include <stdbool.h>

#define STATUS_OK 0
#define STATUS_USAGE 2
#define STATUS_FAILED 4
#define STATUS_FAULT 6

struct loop {
  struct machine *machine;
  struct console *console;
  struct control *control;
  struct sink *output;        /* standard output; debug console */
  struct sink *serial_output; /* may be the same */
  int wake_fd;
  int signal_fd;
  bool exit_on_fault;
  bool fault_told;
};

/* Runs until the machine ends; the exit status of the process. */
int loop_run(struct loop *loop);

#endif
