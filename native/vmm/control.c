#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MAX 2048

static bool adopt(const char *number, struct control *control,
                  struct vmm_error *error) {
  char *end;
  errno = 0;
  long fd = strtol(number, &end, 10);
  int type = 0;
  socklen_t size = sizeof(type);
  if (errno || *number == '\0' || *end != '\0' || fd < 3 || fd > 1 << 20 ||
      getsockopt((int)fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
      type != SOCK_STREAM)
    return vmm_fail(error, "--control fd:%s is not an inherited stream socket",
                    number);
  control->clients[0].fd = (int)fd;
  return true;
}

/* True if a process answers at the socket that is in the way. */
static bool is_alive(const struct sockaddr_un *address) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return true;
  bool alive =
      connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0;
  close(fd);
  return alive;
}

static bool listen_at(const char *path, struct control *control,
                      struct vmm_error *error) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) == 0 || strlen(path) >= sizeof(address.sun_path))
    return vmm_fail(error, "control socket path has to have 1 to %zu bytes",
                    sizeof(address.sun_path) - 1);
  memcpy(address.sun_path, path, strlen(path) + 1);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return vmm_fail(error, "cannot make a socket: %s", strerror(errno));
  control->listen_fd = fd;
  struct stat existing;
  if (lstat(path, &existing) == 0 && S_ISSOCK(existing.st_mode)) {
    if (is_alive(&address))
      return vmm_fail(error, "control socket %s is in use by another machine",
                      path);
    unlink(path); /* left by a process that was killed */
  }
  /* Whoever may connect may stop the machine: only its owner. */
  mode_t mask = umask(0177);
  int bound = bind(fd, (struct sockaddr *)&address, sizeof(address));
  umask(mask);
  if (bound < 0)
    return vmm_fail(error, "cannot make control socket %s: %s", path,
                    strerror(errno));
  memcpy(control->path, path, strlen(path) + 1);
  if (listen(fd, CONTROL_CLIENTS) < 0)
    return vmm_fail(error, "cannot listen at %s: %s", path, strerror(errno));
  return true;
}

bool control_open(const char *where, struct control *control,
                  struct vmm_error *error) {
  *control = (struct control){.listen_fd = -1};
  for (size_t i = 0; i < CONTROL_CLIENTS; i++)
    control->clients[i].fd = -1;
  if (!where)
    return true;
  if (strncmp(where, "fd:", 3) == 0)
    return adopt(where + 3, control, error);
  return listen_at(where, control, error);
}

static void drop(struct control_client *client) {
  close(client->fd);
  client->fd = -1;
  client->length = 0;
}

void control_close(struct control *control) {
  for (size_t i = 0; i < CONTROL_CLIENTS; i++)
    if (control->clients[i].fd >= 0)
      drop(&control->clients[i]);
  if (control->listen_fd >= 0)
    close(control->listen_fd);
  if (control->path[0])
    unlink(control->path);
  control->listen_fd = -1;
  control->path[0] = '\0';
}

/* All text that goes in is our own: no quotes, no backslashes. */
static size_t format_status(struct control *control, const char *head,
                            const char *state, char answer[ANSWER_MAX]) {
  struct machine *machine = control->machine;
  struct fault fault;
  machine_get_fault(machine, &fault);
  char fault_text[640] = "null";
  if (fault.valid)
    snprintf(fault_text, sizeof(fault_text),
             "{\"vcpu\":%u,\"exit_reason\":%lld,\"name\":\"%s\","
             "\"text\":\"%s\",\"rip\":\"%#llx\",\"resumable\":%s}",
             fault.vcpu, (long long)fault.exit_reason, fault.name, fault.text,
             (unsigned long long)fault.rip, fault.resumable ? "true" : "false");
  char serial[80] = "null";
  if (control->serial_name)
    snprintf(serial, sizeof(serial), "\"%s\"", control->serial_name);
  int length = snprintf(
      answer, ANSWER_MAX,
      "{%s,\"state\":\"%s\",\"protocol\":\"%s\",\"vcpus\":%u,"
      "\"memory\":%llu,\"pid\":%d,\"resets\":%u,\"serial\":%s,\"fault\":%s}\n",
      head, state, boot_protocol_name(machine->entry.protocol),
      machine->vcpu_count, (unsigned long long)machine->ram.size, getpid(),
      machine->reset_count, serial, fault_text);
  return (size_t)length;
}

/* A client that does not read its answers is dropped, never waited for. */
static void send_line(struct control_client *client, const char *line,
                      size_t length) {
  if (send(client->fd, line, length, MSG_DONTWAIT | MSG_NOSIGNAL) !=
      (ssize_t)length)
    drop(client);
}

static void send_error(struct control_client *client, const char *text) {
  char answer[ANSWER_MAX];
  int length = snprintf(answer, sizeof(answer),
                        "{\"ok\":false,\"error\":\"%s\"}\n", text);
  send_line(client, answer, (size_t)length);
}

/* Returns true on quit. */
static bool execute(struct control *control, struct control_client *client) {
  struct vmm_error error;
  bool quit = false;
  if (strcmp(client->line, "cont") == 0) {
    if (!machine_cont(control->machine, &error)) {
      send_error(client, error.text);
      return false;
    }
  } else if (strcmp(client->line, "stop") == 0) {
    machine_stop(control->machine);
  } else if (strcmp(client->line, "reset") == 0) {
    machine_reset(control->machine);
  } else if (strcmp(client->line, "quit") == 0) {
    quit = true;
  } else if (strcmp(client->line, "status") != 0) {
    send_error(client, "unknown command; there are cont, stop, reset, status "
                       "and quit");
    return false;
  }
  char answer[ANSWER_MAX];
  size_t length = format_status(control, "\"ok\":true",
                                machine_state_name(control->machine), answer);
  send_line(client, answer, length);
  return quit;
}

/* Returns true on quit. */
static bool read_commands(struct control *control,
                          struct control_client *client) {
  char bytes[CONTROL_LINE];
  ssize_t length = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
  if (length < 0 && (errno == EAGAIN || errno == EINTR))
    return false;
  if (length <= 0) {
    drop(client);
    return false;
  }
  for (ssize_t i = 0; i < length && client->fd >= 0; i++) {
    if (bytes[i] != '\n') {
      if (client->length == CONTROL_LINE - 1) {
        send_error(client, "line too long");
        if (client->fd >= 0)
          drop(client);
        return false;
      }
      client->line[client->length++] = bytes[i];
      continue;
    }
    client->line[client->length] = '\0';
    client->length = 0;
    if (execute(control, client))
      return true;
  }
  return false;
}

static void accept_client(struct control *control) {
  int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0)
    return;
  for (size_t i = 0; i < CONTROL_CLIENTS; i++)
    if (control->clients[i].fd < 0) {
      control->clients[i].fd = fd;
      control->clients[i].length = 0;
      return;
    }
  close(fd);
}

size_t control_poll_set(struct control *control,
                        struct pollfd set[CONTROL_POLL_MAX]) {
  size_t count = 0;
  if (control->listen_fd >= 0)
    set[count++] = (struct pollfd){.fd = control->listen_fd, .events = POLLIN};
  for (size_t i = 0; i < CONTROL_CLIENTS; i++)
    if (control->clients[i].fd >= 0)
      set[count++] =
          (struct pollfd){.fd = control->clients[i].fd, .events = POLLIN};
  return count;
}

bool control_handle(struct control *control, const struct pollfd *set,
                    size_t count) {
  bool connecting = false;
  for (size_t i = 0; i < count; i++) {
    if (!set[i].revents)
      continue;
    if (set[i].fd == control->listen_fd)
      connecting = true;
    for (size_t j = 0; j < CONTROL_CLIENTS; j++)
      if (control->clients[j].fd == set[i].fd &&
          read_commands(control, &control->clients[j]))
        return true;
  }
  /* Last: whoever has left has made room. */
  if (connecting)
    accept_client(control);
  return false;
}

void control_announce(struct control *control) {
  const char *state = machine_state_name(control->machine);
  if (control->last_state && strcmp(control->last_state, state) == 0)
    return;
  control->last_state = state;
  char line[ANSWER_MAX];
  size_t length = format_status(control, "\"event\":\"state\"", state, line);
  for (size_t i = 0; i < CONTROL_CLIENTS; i++)
    if (control->clients[i].fd >= 0)
      send_line(&control->clients[i], line, length);
}
