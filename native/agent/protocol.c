#include "protocol.h"
#include "adopt.h"
#include "attach.h"
#include "breakpoints.h"
#include "cleanup.h"
#include "debug.h"
#include "discover.h"
#include "guardian.h"
#include "memory_slots.h"
#include "regs.h"
#include "sampler.h"
#include "stop.h"
#include "tracee.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

__asm__(".section .rodata\n"
        "declarations: .incbin \"declarations.inc\"\n"
        "declarations_end:\n"
        ".previous\n");
extern const char declarations[], declarations_end[];

/* One step takes a fraction of it. */
static const uint64_t turn_ns = 2000000;
static const uint64_t default_timeout_ns = 5000000000;

struct client {
  int control;
  int child_fd; /* readable when a tracee has news */
  pid_t pid;
  bool attached;
  bool done;
  struct session session;
  uint8_t payload[KVMGDB_AGENT_MAX_PAYLOAD];
  size_t length; /* of the payload, in and out */
  int descriptor[KVMGDB_AGENT_MAX_REGIONS];
  int descriptor_count;
};

/* Seals a reply; false when the client is gone. Never blocks: a client that
 * does not read its replies has broken the protocol. */
static bool send_reply(struct client *client,
                       const struct kvmgdb_agent_reply *reply) {
  struct iovec parts[] = {{(void *)reply, sizeof(*reply)},
                          {client->payload, reply->length}};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int) * KVMGDB_AGENT_MAX_REGIONS)];
  } control = {0};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
  if (client->descriptor_count) {
    size_t size = sizeof(int) * (size_t)client->descriptor_count;
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(size);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), client->descriptor, size);
  }
  return sendmsg(client->control, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

/* ---- commands ------------------------------------------------------------ */

static enum kvmgdb_agent_status on_discover(struct client *client,
                                            struct agent_error *error) {
  scoped_memory struct discovery *found = malloc(sizeof(*found));
  if (!found)
    return agent_fail(error, KVMGDB_AGENT_HOST, ENOMEM, -1, 0);
  enum kvmgdb_agent_status status = discover(client->pid, found, error);
  size_t size = (size_t)found->info.vcpu_count * sizeof(found->vcpu[0]);
  memcpy(client->payload, &found->info, sizeof(found->info));
  memcpy(client->payload + sizeof(found->info), found->vcpu, size);
  client->length = sizeof(found->info) + size;
  return status;
}

_Static_assert(sizeof(struct kvmgdb_agent_discovery) +
                       KVMGDB_AGENT_MAX_VCPUS *
                           sizeof(struct kvmgdb_agent_found_vcpu) <=
                   KVMGDB_AGENT_MAX_PAYLOAD,
               "every discovery fits a reply");

static void describe_attached(struct client *client) {
  const struct session *session = &client->session;
  struct kvmgdb_agent_attached attached = {
      .vcpu_count = session->vcpu_count,
      .sync_regs = session->sync_regs,
      .block_irq = !!(session->guest_debug_supported & KVM_GUESTDBG_BLOCKIRQ),
      .perf = session->perf,
  };
  memcpy(client->payload, &attached, sizeof(attached));
  client->length = sizeof(attached);
}

static enum kvmgdb_agent_status on_attach(struct client *client,
                                          uint64_t timeout_ns,
                                          struct agent_error *error) {
  struct session *session = &client->session;
  if (client->attached)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  enum kvmgdb_agent_status status = session_open(session, client->pid, error);
  if (!status)
    status = guardian_start(session, client->control, error);
  if (!status)
    status = session_attach(session, timeout_ns, error);
  if (status) {
    guardian_end(session);
    session_close(session);
    return status;
  }
  client->attached = true;
  describe_attached(client);
  client->descriptor[0] = session->shared_fd;
  client->descriptor[1] = session->event_fd;
  client->descriptor[2] = session->memory_fd;
  client->descriptor_count = 3;
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status on_adopt(struct client *client,
                                         uint64_t timeout_ns,
                                         struct agent_error *error) {
  struct session *session = &client->session;
  client->length = 0;
  if (session->sampler) /* it has counted them */
    return agent_fail(error, KVMGDB_AGENT_RUNNING, 0, 0, 0);
  enum kvmgdb_agent_status status =
      adopt_vcpus(session, client->control, timeout_ns, error);
  int events;
  if (!status)
    status = debug_show_stop(session, &events, error);
  describe_attached(client);
  return status;
}

static enum kvmgdb_agent_status on_stop(struct client *client, int vcpu,
                                        uint64_t timeout_ns,
                                        struct agent_error *error) {
  struct session *session = &client->session;
  if (vcpu != KVMGDB_AGENT_ALL && (vcpu < 0 || vcpu >= session->vcpu_count))
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, vcpu, 0);
  enum kvmgdb_agent_status status =
      stop_vcpus(session, vcpu, now_ns() + timeout_ns, error);
  int events;
  if (!status)
    status = debug_show_stop(session, &events, error);
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].phase == PHASE_PARKED)
      session->vcpu[i].let_run = false;
  return status;
}

static enum kvmgdb_agent_status on_breakpoint(struct client *client,
                                              uint32_t command,
                                              struct agent_error *error) {
  struct kvmgdb_agent_breakpoint breakpoint;
  if (client->length != sizeof(breakpoint))
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  memcpy(&breakpoint, client->payload, sizeof(breakpoint));
  client->length = 0;
  return command == KVMGDB_AGENT_INSERT
             ? breakpoints_insert(&client->session, &breakpoint, error)
             : breakpoints_remove(&client->session, &breakpoint, error);
}

static enum kvmgdb_agent_status on_ioctl(struct client *client, int vcpu,
                                         uint32_t id,
                                         struct agent_error *error) {
  if (vcpu < 0 || vcpu >= client->session.vcpu_count)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, vcpu, 0);
  return regs_ioctl(&client->session, &client->session.vcpu[vcpu], id,
                    client->payload, client->length, error);
}

static enum kvmgdb_agent_status on_regions(struct client *client,
                                           bool with_descriptors,
                                           struct agent_error *error) {
  struct region_list list;
  enum kvmgdb_agent_status status =
      with_descriptors ? memory_slots_find(&client->session, &list, error)
                       : memory_slots_list(&client->session, &list, error);
  if (status)
    return status;
  client->length = (size_t)list.count * sizeof(list.region[0]);
  memcpy(client->payload, list.region, client->length);
  client->descriptor_count = list.descriptor_count;
  memcpy(client->descriptor, list.descriptor, sizeof(list.descriptor));
  return memory_slots_open(&client->session, &list, error);
}

_Static_assert(KVMGDB_AGENT_MAX_REGIONS * sizeof(struct kvmgdb_agent_region) <=
                   KVMGDB_AGENT_MAX_PAYLOAD,
               "every list of regions fits a reply");

static enum kvmgdb_agent_status on_sample_start(struct client *client,
                                                struct agent_error *error) {
  enum kvmgdb_agent_status status =
      sampler_start(&client->session, client->payload, client->length,
                    &client->descriptor[0], error);
  client->descriptor_count = !status;
  client->length = 0;
  return status;
}

static enum kvmgdb_agent_status
execute(struct client *client, const struct kvmgdb_agent_request *request,
        struct agent_error *error) {
  uint64_t timeout =
      request->timeout_ns ? request->timeout_ns : default_timeout_ns;
  switch (request->command) {
  case KVMGDB_AGENT_DISCOVER:
    return on_discover(client, error);
  case KVMGDB_AGENT_ATTACH:
    client->length = 0;
    return on_attach(client, timeout, error);
  }
  if (!client->attached)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  if (client->session.gone)
    return agent_fail(error, KVMGDB_AGENT_GONE, 0, -1, 0);
  sampler_settle(&client->session);
  switch (request->command) {
  case KVMGDB_AGENT_SAMPLE_START:
    return on_sample_start(client, error);
  case KVMGDB_AGENT_ADOPT:
    return on_adopt(client, timeout, error);
  case KVMGDB_AGENT_IOCTL:
    return on_ioctl(client, request->vcpu, request->argument, error);
  case KVMGDB_AGENT_INSERT:
  case KVMGDB_AGENT_REMOVE:
    return on_breakpoint(client, request->command, error);
  case KVMGDB_AGENT_RESUME:
    if (client->length != (size_t)client->session.vcpu_count)
      return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
    client->length = 0;
    return debug_resume(&client->session, client->payload, error);
  }
  client->length = 0;
  switch (request->command) {
  case KVMGDB_AGENT_STOP:
    return on_stop(client, request->vcpu, timeout, error);
  case KVMGDB_AGENT_REGIONS:
    return on_regions(client, !request->argument, error);
  case KVMGDB_AGENT_SAMPLE_STOP:
    sampler_stop(&client->session);
    return KVMGDB_AGENT_OK;
  case KVMGDB_AGENT_DETACH:
    client->done = true;
    return session_detach(&client->session, error);
  }
  return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, request->command);
}

/* ---- the loop ------------------------------------------------------------ */

static void take_request(struct client *client) {
  struct kvmgdb_agent_request request;
  struct iovec parts[] = {{&request, sizeof(request)},
                          {client->payload, sizeof(client->payload)}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
  ssize_t length = recvmsg(client->control, &message, MSG_DONTWAIT);
  uint64_t start = now_ns();
  if (length < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (length < (ssize_t)sizeof(request) || (message.msg_flags & MSG_TRUNC) ||
      (size_t)length - sizeof(request) != request.length) {
    client->done = true; /* end of file, or not our protocol */
    return;
  }
  client->length = request.length;
  client->descriptor_count = 0;
  struct agent_error error = {.vcpu = -1};
  enum kvmgdb_agent_status status = execute(client, &request, &error);
  bool has_payload = !status || request.command == KVMGDB_AGENT_DISCOVER;
  struct kvmgdb_agent_reply reply = {
      .command = request.command,
      .status = status,
      .os_error = status ? error.os_error : 0,
      .vcpu = status ? error.vcpu : -1,
      .detail = status ? error.detail : 0,
      .elapsed_ns = now_ns() - start,
      .length = has_payload ? (uint32_t)client->length : 0,
      .descriptors = (uint32_t)client->descriptor_count,
  };
  if (!send_reply(client, &reply))
    client->done = true;
  if (request.command == KVMGDB_AGENT_REGIONS)
    for (int i = 0; i < client->descriptor_count; i++)
      close(client->descriptor[i]);
}

static void note_gone(struct session *session) {
  uint64_t one = 1;
  session->gone = true;
  if (session->shared->gone)
    return;
  for (int i = 0; i < session->vcpu_count; i++) {
    session->shared->vcpu[i].state = KVMGDB_AGENT_VCPU_GONE;
    session->shared->vcpu[i].registers_valid = 0;
  }
  __atomic_store_n(&session->shared->gone, 1, __ATOMIC_RELEASE);
  ssize_t written = write(session->event_fd, &one, sizeof(one));
  (void)written; /* only fails when it is readable already */
}

/* Between requests: what the vCPU threads, the VMM and the guardian did. */
static void take_news(struct client *client) {
  struct session *session = &client->session;
  stop_take_news(session);
  if (session->gone) {
    note_gone(session);
    return;
  }
  sampler_run(session);
  debug_take_events(session);
  struct agent_error ignored;
  if (!session->guardian)
    guardian_start(session, client->control, &ignored);
}

/* How long the loop may sleep; NULL: until something happens. */
static struct timespec *sleep_time(const struct client *client,
                                   struct timespec *space) {
  uint64_t wait = UINT64_MAX;
  if (client->attached && debug_takes_turns(&client->session))
    wait = turn_ns;
  uint64_t due = sampler_due(&client->session);
  if (due != UINT64_MAX && !client->session.gone) {
    uint64_t now = now_ns();
    uint64_t until = due > now ? due - now : 0;
    wait = until < wait ? until : wait;
  }
  if (wait == UINT64_MAX)
    return NULL;
  *space =
      (struct timespec){(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
  return space;
}

static void serve(struct client *client) {
  while (!client->done) {
    bool attached = client->attached;
    if (attached)
      take_news(client);
    struct pollfd sources[] = {
        {client->control, POLLIN, 0},
        {attached ? client->child_fd : -1, POLLIN, 0},
        {attached && !client->session.gone ? client->session.pid_fd : -1,
         POLLIN, 0},
    };
    struct timespec space;
    int ready = ppoll(sources, 3, sleep_time(client, &space), NULL);
    if (ready < 0 && errno != EINTR)
      break;
    if (!ready && attached && debug_takes_turns(&client->session))
      debug_next_turn(&client->session);
    if (sources[1].revents) {
      char drained[1024];
      ssize_t length = read(client->child_fd, drained, sizeof(drained));
      (void)length; /* that it was readable is all it says */
    }
    if (sources[2].revents)
      client->session.gone = true;
    if (sources[0].revents)
      take_request(client);
  }
}

void protocol_serve(pid_t pid, int control) {
  scoped_memory struct client *client = calloc(1, sizeof(*client));
  scoped_fd child_fd = tracee_init();
  if (!client || child_fd < 0)
    return;
  client->control = control;
  client->child_fd = child_fd;
  client->pid = pid;
  size_t length = (size_t)(declarations_end - declarations);
  if (send(control, declarations, length, MSG_NOSIGNAL) < 0)
    return;
  serve(client);
  if (!client->attached)
    return;
  struct agent_error ignored;
  session_detach(&client->session, &ignored);
  guardian_end(&client->session);
  session_close(&client->session);
}
