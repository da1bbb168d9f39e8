#include "loop.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* How often a pseudo-terminal without a user is looked at. */
#define PTY_CHECK_MS 200

enum {
  POLL_WAKE,
  POLL_SIGNAL,
  POLL_INPUT,
  POLL_OUTPUT,
  POLL_SERIAL,
  POLL_FIXED
};

static void feed_serial(struct loop *loop) {
  struct serial *serial = &loop->machine->ports.serial;
  uint8_t byte;
  pthread_mutex_lock(&loop->machine->ports.lock);
  while (serial_room(serial) > 0 && console_next(loop->console, &byte))
    serial_receive(serial, byte);
  pthread_mutex_unlock(&loop->machine->ports.lock);
}

static void flush(struct loop *loop, struct sink *sink) {
  if (!sink_flush(sink) || sink != loop->serial_output)
    return;
  pthread_mutex_lock(&loop->machine->ports.lock);
  serial_transmit_ready(&loop->machine->ports.serial);
  pthread_mutex_unlock(&loop->machine->ports.lock);
}

/* Says what happened, once per fault. */
static void tell_fault(struct loop *loop) {
  struct fault fault;
  machine_get_fault(loop->machine, &fault);
  if (!fault.valid) {
    loop->fault_told = false;
    return;
  }
  if (loop->fault_told)
    return;
  loop->fault_told = true;
  fprintf(stderr, "kvmgdb-vmm: vCPU %u stopped at rip %#llx: %s (%s)\n",
          fault.vcpu, (unsigned long long)fault.rip, fault.text, fault.name);
  if (!loop->exit_on_fault)
    fprintf(stderr,
            "kvmgdb-vmm: the machine is kept as it is, process %d; end it "
            "with quit, SIGTERM or Ctrl-A x\n",
            (int)getpid());
}

/* Fills `set`; a descriptor of -1 is skipped by poll. */
static void fill_fixed(struct loop *loop, struct pollfd set[POLL_FIXED]) {
  struct console *console = loop->console;
  bool listening = console->kind != CONSOLE_PTY || console->connected;
  bool wants_input = console->raw || console->count < CONSOLE_QUEUE;
  int input = listening && wants_input ? console->input_fd : -1;
  int output = sink_is_empty(loop->output) ? -1 : loop->output->fd;
  int serial = -1;
  if (loop->serial_output && loop->serial_output != loop->output && listening &&
      !sink_is_empty(loop->serial_output))
    serial = loop->serial_output->fd;
  set[POLL_WAKE] = (struct pollfd){.fd = loop->wake_fd, .events = POLLIN};
  set[POLL_SIGNAL] = (struct pollfd){.fd = loop->signal_fd, .events = POLLIN};
  set[POLL_INPUT] = (struct pollfd){.fd = input, .events = POLLIN};
  set[POLL_OUTPUT] = (struct pollfd){.fd = output, .events = POLLOUT};
  set[POLL_SERIAL] = (struct pollfd){.fd = serial, .events = POLLOUT};
}

static void check_pty(struct loop *loop) {
  if (loop->console->kind != CONSOLE_PTY)
    return;
  console_check_connection(loop->console);
  sink_set_drop_oldest(loop->serial_output, !loop->console->connected);
}

/* Returns false, and the exit status, when the machine ends. */
static bool turn(struct loop *loop, int *status) {
  struct pollfd set[POLL_FIXED + CONTROL_POLL_MAX];
  fill_fixed(loop, set);
  size_t clients = control_poll_set(loop->control, set + POLL_FIXED);
  int timeout = loop->console->kind == CONSOLE_PTY ? PTY_CHECK_MS : -1;
  if (poll(set, POLL_FIXED + clients, timeout) < 0 && errno != EINTR) {
    fprintf(stderr, "kvmgdb-vmm: poll: %s\n", strerror(errno));
    *status = STATUS_FAILED;
    return false;
  }
  *status = STATUS_OK;
  if (set[POLL_SIGNAL].revents)
    return false;
  if (set[POLL_WAKE].revents) {
    eventfd_t ignored;
    eventfd_read(loop->wake_fd, &ignored);
  }
  check_pty(loop);
  if (set[POLL_INPUT].revents && !console_read_input(loop->console))
    return false;
  if (set[POLL_OUTPUT].revents)
    flush(loop, loop->output);
  if (set[POLL_SERIAL].revents)
    flush(loop, loop->serial_output);
  if (control_handle(loop->control, set + POLL_FIXED, clients))
    return false;
  struct vmm_error error;
  if (!machine_settle(loop->machine, &error)) {
    fprintf(stderr, "kvmgdb-vmm: reset failed: %s\n", error.text);
    *status = STATUS_FAILED;
    return false;
  }
  feed_serial(loop);
  tell_fault(loop);
  control_announce(loop->control);
  if (loop->fault_told && loop->exit_on_fault) {
    *status = STATUS_FAULT;
    return false;
  }
  return !machine_exit_pending(loop->machine, status);
}

int loop_run(struct loop *loop) {
  int status;
  check_pty(loop);
  control_announce(loop->control);
  while (turn(loop, &status))
    ;
  return status;
}
