#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define CTRL_A 0x01

static struct termios saved_terminal;
static volatile sig_atomic_t terminal_saved;

void console_restore_terminal(void) {
  if (!terminal_saved)
    return;
  terminal_saved = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &saved_terminal);
}

/* The process dies of it as it would have, with the terminal as it was. */
static void restore_and_die(int signal_number) {
  console_restore_terminal();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

static bool make_terminal_raw(struct console *console,
                              struct vmm_error *error) {
  if (!isatty(STDIN_FILENO))
    return true;
  /* In the background reading would stop us (SIGTTIN): leave it alone. */
  if (tcgetpgrp(STDIN_FILENO) != getpgrp()) {
    console->input_fd = -1;
    return true;
  }
  if (tcgetattr(STDIN_FILENO, &saved_terminal) < 0)
    return vmm_fail(error, "cannot read the terminal's mode: %s",
                    strerror(errno));
  terminal_saved = 1;
  atexit(console_restore_terminal);
  static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
  for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
    signal(deadly[i], restore_and_die);
  struct termios raw = saved_terminal;
  cfmakeraw(&raw);
  raw.c_oflag |= OPOST | ONLCR; /* our own messages have plain newlines */
  if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0)
    return vmm_fail(error, "cannot set the terminal's mode: %s",
                    strerror(errno));
  console->raw = true;
  return true;
}

static bool open_pty(struct console *console, struct vmm_error *error) {
  int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0 ||
      ptsname_r(fd, console->pty_name, sizeof(console->pty_name)) != 0)
    return vmm_fail(error, "cannot make a pseudo-terminal: %s",
                    strerror(errno));
  /* Opened once and closed: from now on poll tells whether it is open. */
  int other = open(console->pty_name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  struct termios raw;
  if (other < 0 || tcgetattr(other, &raw) < 0)
    return vmm_fail(error, "cannot open %s: %s", console->pty_name,
                    strerror(errno));
  cfmakeraw(&raw);
  tcsetattr(other, TCSANOW, &raw);
  close(other);
  console->input_fd = console->output_fd = fd;
  return true;
}

bool console_open(enum console_kind kind, struct console *console,
                  struct vmm_error *error) {
  *console = (struct console){.kind = kind, .input_fd = -1, .output_fd = -1};
  switch (kind) {
  case CONSOLE_NONE:
    return true;
  case CONSOLE_PTY:
    return open_pty(console, error);
  case CONSOLE_STDIO:
    break;
  }
  console->connected = true;
  console->output_fd = STDOUT_FILENO;
  console->input_fd = STDIN_FILENO;
  return make_terminal_raw(console, error);
}

/* Returns false on the command to end. */
static bool take_byte(struct console *console, uint8_t byte) {
  if (console->raw && !console->escape_seen && byte == CTRL_A) {
    console->escape_seen = true;
    return true;
  }
  if (console->escape_seen && byte == 'x')
    return false;
  console->escape_seen = false;
  if (console->count < CONSOLE_QUEUE) {
    console->queue[(console->head + console->count) % CONSOLE_QUEUE] = byte;
    console->count++;
  }
  return true;
}

bool console_read_input(struct console *console) {
  uint8_t bytes[256];
  size_t room = CONSOLE_QUEUE - console->count;
  /* With a full queue a terminal is still read, for Ctrl-A x. */
  if (room == 0 && !console->raw)
    return true;
  size_t want = room < sizeof(bytes) && !console->raw ? room : sizeof(bytes);
  ssize_t length = read(console->input_fd, bytes, want);
  if (length < 0 && (errno == EINTR || errno == EAGAIN))
    return true;
  if (length <= 0) {
    /* End of file; of a pseudo-terminal only its present user is gone. */
    if (console->kind == CONSOLE_PTY)
      console->connected = false;
    else
      console->input_fd = -1;
    return true;
  }
  for (ssize_t i = 0; i < length; i++)
    if (!take_byte(console, bytes[i]))
      return false;
  return true;
}

bool console_next(struct console *console, uint8_t *byte) {
  if (console->count == 0)
    return false;
  *byte = console->queue[console->head];
  console->head = (console->head + 1) % CONSOLE_QUEUE;
  console->count--;
  return true;
}

void console_check_connection(struct console *console) {
  struct pollfd other = {.fd = console->output_fd, .events = POLLOUT};
  console->connected =
      poll(&other, 1, 0) >= 0 && !(other.revents & (POLLHUP | POLLERR));
}
