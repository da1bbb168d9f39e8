/* kvmgdb-vmm: a small virtual machine monitor on /dev/kvm. */
#include "loop.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX (1ULL << 30)
/* What the guest has printed last still gets out, if anybody takes it. */
#define DRAIN_MS 1000

static struct machine machine;
static struct console console;
static struct control control;
static struct sink standard_output;
static struct sink pty_output;

/* Reads a whole regular file, so that nobody can change it under us. */
static bool read_file(const char *path, const char *what, const uint8_t **data,
                      size_t *size, struct vmm_error *error) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) < 0)
    return vmm_fail(error, "cannot read %s %s: %s", what, path,
                    strerror(errno));
  if (!S_ISREG(status.st_mode) || status.st_size <= 0 ||
      (uint64_t)status.st_size > FILE_MAX) {
    close(fd);
    return vmm_fail(error, "%s %s is no file of 1 byte to 1 GiB", what, path);
  }
  *size = (size_t)status.st_size;
  uint8_t *bytes = malloc(*size);
  size_t done = 0;
  while (bytes && done < *size) {
    ssize_t length = read(fd, bytes + done, *size - done);
    if (length < 0 && errno == EINTR)
      continue;
    if (length <= 0)
      break;
    done += (size_t)length;
  }
  close(fd);
  if (done < *size) {
    free(bytes);
    return vmm_fail(error, "cannot read all of %s %s", what, path);
  }
  *data = bytes;
  return true;
}

static bool read_source(const struct options *options,
                        struct boot_source *source, struct vmm_error *error) {
  *source = (struct boot_source){
      .command_line = options->command_line,
      .protocol = options->protocol,
      .flat_address = options->flat_address,
  };
  if (!read_file(options->kernel, "kernel", &source->kernel,
                 &source->kernel_size, error))
    return false;
  return !options->initrd ||
         read_file(options->initrd, "initrd", &source->initrd,
                   &source->initrd_size, error);
}

static void ignore_signal(int signal_number) { (void)signal_number; }

/* SIGUSR1 kicks vCPU threads (run.c); the others end the machine. */
static int open_signals(void) {
  sigset_t ending, blocked;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigaddset(&ending, SIGINT);
  sigaddset(&ending, SIGHUP);
  sigaddset(&ending, SIGQUIT);
  blocked = ending;
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  signal(SIGUSR1, ignore_signal);
  signal(SIGPIPE, SIG_IGN);
  return signalfd(-1, &ending, SFD_CLOEXEC);
}

static void set_serial_irq(void *context, bool level) {
  machine_set_irq(context, SERIAL_IRQ, level);
}

/* A closed standard descriptor must not be taken by one of ours. */
static void fill_standard_descriptors(void) {
  int fd;
  do
    fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd > STDERR_FILENO)
    close(fd);
}

static bool start(const struct options *options, struct loop *loop,
                  struct vmm_error *error) {
  struct boot_source source;
  loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  loop->signal_fd = open_signals();
  if (loop->wake_fd < 0 || loop->signal_fd < 0)
    return vmm_fail(error, "cannot set up events: %s", strerror(errno));
  if (!read_source(options, &source, error))
    return false;
  sink_init(&standard_output, STDOUT_FILENO, loop->wake_fd);
  ports_init(&machine.ports, &standard_output);
  if (!machine_create(options->memory, options->vcpus, &source, loop->wake_fd,
                      &machine, error) ||
      !control_open(options->control, &control, error) ||
      !console_open(options->serial, &console, error))
    return false;
  if (options->serial == CONSOLE_STDIO) {
    loop->serial_output = &standard_output;
  } else if (options->serial == CONSOLE_PTY) {
    sink_init(&pty_output, console.output_fd, loop->wake_fd);
    loop->serial_output = &pty_output;
    control.serial_name = console.pty_name;
    fprintf(stderr, "kvmgdb-vmm: serial port is %s\n", console.pty_name);
  }
  serial_init(&machine.ports.serial, loop->serial_output, set_serial_irq,
              &machine);
  control.machine = &machine;
  return machine_start(&machine, options->paused, error);
}

int main(int argc, char **argv) {
  fill_standard_descriptors();
  struct options options;
  struct vmm_error error;
  if (!options_parse(argc, argv, &options, &error)) {
    fprintf(stderr, "kvmgdb-vmm: %s\n", error.text);
    return STATUS_USAGE;
  }
  if (options.help) {
    fputs(options_help, stdout);
    return STATUS_OK;
  }
  struct loop loop = {
      .machine = &machine,
      .console = &console,
      .control = &control,
      .output = &standard_output,
      .exit_on_fault = options.exit_on_fault,
  };
  int status = STATUS_FAILED;
  if (start(&options, &loop, &error)) {
    status = loop_run(&loop);
    sink_drain(&standard_output, DRAIN_MS);
    if (loop.serial_output == &pty_output && console.connected)
      sink_drain(&pty_output, DRAIN_MS);
  } else {
    fprintf(stderr, "kvmgdb-vmm: %s\n", error.text);
  }
  console_restore_terminal();
  control_close(&control);
  /* vCPU threads may be stopped by a debugger: nobody waits for them. */
  fflush(NULL);
  _exit(status);
}
