#include "sampler.h"
#include "cleanup.h"
#include "memory_slots.h"
#include "priority.h"
#include "stop.h"
#include "tracee.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <kvmgdb/profile.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>

static const uint64_t min_period_ns = 50000;
static const uint64_t max_period_ns = 3600000000000;
static const uint64_t max_ring_bytes = 256 << 20;
/* A vCPU that does not stop in this time (its host is busy) is waited for in
 * the loop of the protocol; past the other, the sample has failed. */
static const uint64_t round_ns = 2000000;
static const uint64_t fail_ns = 1000000000;
static const uint64_t settle_ns = 2000000000;

enum { RECORD_BYTES = 128 << 10, MAX_AREAS = 512 };

struct sampler {
  struct kvmgdb_ring *ring;
  size_t mapped; /* bytes */
  int ring_fd;
  uint64_t period_ns;
  uint64_t due_ns;
  uint64_t random;
  struct kvmgdb_sampling sampling;
  struct kvmgdb_stack_area areas[MAX_AREAS];
  uint64_t current[KVMGDB_AGENT_MAX_VCPUS];
  int syscall_fd[KVMGDB_AGENT_MAX_VCPUS]; /* /proc/PID/task/TID/syscall */
  int schedstat_fd[KVMGDB_AGENT_MAX_VCPUS];
  uint64_t interrupted_ns[KVMGDB_AGENT_MAX_VCPUS];
  uint64_t waited_ns[KVMGDB_AGENT_MAX_VCPUS]; /* until then, for a CPU */
  _Alignas(8) uint8_t record[RECORD_BYTES];
};

/* ---- starting and stopping ---------------------------------------------- */

static uint64_t next_random(struct sampler *sampler) { /* xorshift64 */
  sampler->random ^= sampler->random << 13;
  sampler->random ^= sampler->random >> 7;
  sampler->random ^= sampler->random << 17;
  return sampler->random;
}

/* From half a period to one and a half: what the guest does periodically must
 * not always be met in the same place. */
static uint64_t next_interval(struct sampler *sampler) {
  return sampler->period_ns / 2 + next_random(sampler) % sampler->period_ns;
}

static void destroy(struct session *session, struct sampler *sampler) {
  for (int i = 0; i < session->vcpu_count; i++)
    close_descriptor(&sampler->syscall_fd[i]);
  for (int i = 0; i < session->vcpu_count; i++)
    close_descriptor(&sampler->schedstat_fd[i]);
  if (sampler->ring)
    munmap(sampler->ring, sampler->mapped);
  close_descriptor(&sampler->ring_fd);
  free(sampler);
}

static bool parse(const struct session *session, struct sampler *sampler,
                  const uint8_t *payload, size_t length, uint64_t *ring_bytes) {
  struct kvmgdb_agent_sampling head;
  if (length < sizeof(head))
    return false;
  memcpy(&head, payload, sizeof(head));
  size_t tasks = (size_t)session->vcpu_count * sizeof(sampler->current[0]);
  uint32_t areas = head.sampling.area_count;
  if (areas > MAX_AREAS ||
      length != sizeof(head) + tasks + areas * sizeof(sampler->areas[0]))
    return false;
  memcpy(sampler->current, payload + sizeof(head), tasks);
  memcpy(sampler->areas, payload + sizeof(head) + tasks,
         areas * sizeof(sampler->areas[0]));
  sampler->sampling = head.sampling;
  sampler->period_ns = head.period_ns;
  *ring_bytes = head.ring_bytes;
  return head.period_ns >= min_period_ns && head.period_ns <= max_period_ns &&
         head.ring_bytes >= 2 * RECORD_BYTES &&
         head.ring_bytes <= max_ring_bytes &&
         !(head.ring_bytes & (head.ring_bytes - 1));
}

static bool open_ring(struct sampler *sampler, uint64_t bytes) {
  sampler->mapped = KVMGDB_RING_DATA + bytes;
  sampler->ring_fd = memfd_create("kvmgdb-samples", MFD_CLOEXEC);
  if (sampler->ring_fd < 0 ||
      ftruncate(sampler->ring_fd, (off_t)sampler->mapped))
    return false;
  void *ring = mmap(NULL, sampler->mapped, PROT_READ | PROT_WRITE, MAP_SHARED,
                    sampler->ring_fd, 0);
  if (ring == MAP_FAILED)
    return false;
  sampler->ring = ring;
  sampler->ring->capacity = bytes;
  return true;
}

static int open_thread_file(const struct session *session, pid_t tid,
                            const char *name) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", session->pid, tid, name);
  return open(path, O_RDONLY | O_CLOEXEC);
}

static bool open_threads(const struct session *session,
                         struct sampler *sampler) {
  for (int i = 0; i < session->vcpu_count; i++) {
    pid_t tid = session->vcpu[i].tid;
    sampler->syscall_fd[i] = open_thread_file(session, tid, "syscall");
    if (sampler->syscall_fd[i] < 0)
      return false;
    sampler->schedstat_fd[i] = open_thread_file(session, tid, "schedstat");
  }
  return true;
}

static enum kvmgdb_agent_status find_memory(struct session *session,
                                            struct agent_error *error) {
  if (session->guest_memory)
    return KVMGDB_AGENT_OK;
  struct region_list list;
  enum kvmgdb_agent_status status = memory_slots_find(session, &list, error);
  if (!status)
    status = memory_slots_open(session, &list, error);
  memory_slots_close(&list);
  return status;
}

enum kvmgdb_agent_status sampler_start(struct session *session,
                                       const void *payload, size_t length,
                                       int *ring_fd,
                                       struct agent_error *error) {
  if (session->sampler)
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  if (!session->sync_regs)
    return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, 0);
  enum kvmgdb_agent_status status = find_memory(session, error);
  if (status)
    return status;
  struct sampler *sampler = calloc(1, sizeof(*sampler));
  if (!sampler)
    return agent_fail(error, KVMGDB_AGENT_HOST, ENOMEM, -1, 0);
  sampler->ring_fd = -1;
  for (int i = 0; i < session->vcpu_count; i++)
    sampler->syscall_fd[i] = sampler->schedstat_fd[i] = -1;
  uint64_t ring_bytes;
  if (!parse(session, sampler, payload, length, &ring_bytes))
    status = agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  else if (!open_ring(sampler, ring_bytes) || !open_threads(session, sampler))
    status = agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  if (status) {
    destroy(session, sampler);
    return status;
  }
  if (getrandom(&sampler->random, sizeof(sampler->random), GRND_NONBLOCK) < 0)
    sampler->random = now_ns();
  sampler->random |= 1; /* zero would stay zero */
  prctl(PR_SET_TIMERSLACK, 1);
  priority_be_prompt(true);
  sampler->due_ns = now_ns() + next_interval(sampler);
  session->sampler = sampler;
  *ring_fd = sampler->ring_fd;
  return KVMGDB_AGENT_OK;
}

void sampler_settle(struct session *session) {
  if (!session->sampler)
    return;
  uint64_t deadline = now_ns() + settle_ns;
  for (;;) {
    bool waiting = false;
    stop_take_news(session);
    for (int i = 0; i < session->vcpu_count; i++) {
      struct vcpu *vcpu = &session->vcpu[i];
      if (!vcpu->sampled)
        continue;
      if (vcpu->phase == PHASE_PARKED || vcpu->phase == PHASE_GLANCED)
        stop_release_sampled(vcpu);
      else if (vcpu->phase != PHASE_GONE)
        waiting = true;
    }
    if (!waiting || session->gone)
      return;
    if (!tracee_sleep(deadline))
      break;
  }
  /* Whoever wants it stopped goes on waiting for the same stop. */
  for (int i = 0; i < session->vcpu_count; i++)
    session->vcpu[i].sampled = false;
}

void sampler_stop(struct session *session) {
  if (!session->sampler)
    return;
  sampler_settle(session);
  prctl(PR_SET_TIMERSLACK, 0); /* the default again */
  priority_be_prompt(false);
  destroy(session, session->sampler);
  session->sampler = NULL;
}

uint64_t sampler_due(const struct session *session) {
  return session->sampler ? session->sampler->due_ns : UINT64_MAX;
}

/* ---- one sample ---------------------------------------------------------- */

static void write_record(struct sampler *sampler, const void *record,
                         uint32_t size) {
  struct kvmgdb_ring *ring = sampler->ring;
  uint64_t capacity = sampler->mapped - KVMGDB_RING_DATA;
  uint64_t head = ring->head;
  uint64_t used = head - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
  uint64_t at = head & (capacity - 1);
  uint64_t padding = capacity - at < size ? capacity - at : 0;
  /* `tail` is the reader's: one that makes no sense leaves no room. */
  if (used > capacity || padding + size > capacity - used) {
    ring->dropped++;
    return;
  }
  uint8_t *data = (uint8_t *)ring + KVMGDB_RING_DATA;
  if (padding) {
    struct {
      uint32_t size;
      uint16_t vcpu;
      uint8_t state;
      uint8_t unused;
    } pad = {(uint32_t)padding, 0, KVMGDB_SAMPLE_PADDING, 0};
    memcpy(data + at, &pad, sizeof(pad));
    at = 0;
  }
  memcpy(data + at, record, size);
  ring->samples++;
  __atomic_store_n(&ring->head, head + padding + size, __ATOMIC_RELEASE);
}

static struct kvmgdb_sample *new_sample(struct sampler *sampler,
                                        const struct vcpu *vcpu,
                                        enum kvmgdb_sample_state state,
                                        uint64_t time_ns) {
  struct kvmgdb_sample *sample = (struct kvmgdb_sample *)sampler->record;
  *sample = (struct kvmgdb_sample){.size = sizeof(*sample),
                                   .vcpu = (uint16_t)vcpu->index,
                                   .state = (uint8_t)state,
                                   .time_ns = time_ns};
  return sample;
}

static void write_state(struct session *session, const struct vcpu *vcpu,
                        enum kvmgdb_sample_state state, uint64_t time_ns) {
  struct sampler *sampler = session->sampler;
  write_record(sampler, new_sample(sampler, vcpu, state, time_ns),
               sizeof(struct kvmgdb_sample));
}

/* Registers are those that KVM left with the last exit, and the memory is read
 * now. NULL where KVM has not left any yet. */
static struct kvmgdb_sample *fill(struct session *session,
                                  const struct vcpu *vcpu,
                                  enum kvmgdb_sample_state state,
                                  uint64_t time_ns) {
  struct sampler *sampler = session->sampler;
  struct kvmgdb_sample *sample = new_sample(sampler, vcpu, state, time_ns);
  const struct kvm_regs *regs = &vcpu->run->s.regs.regs;
  const struct kvm_sregs *sregs = &vcpu->run->s.regs.sregs;
  struct kvmgdb_paging paging = {sregs->cr0, sregs->cr3, sregs->cr4,
                                 sregs->efer};
  if (!sregs->cr0) /* bit 4 is always set: nothing is there yet */
    return NULL;
  sample->ip = regs->rip;
  sample->sp = regs->rsp;
  sample->bp = regs->rbp;
  sample->ax = regs->rax;
  sample->dx = regs->rdx;
  sample->di = regs->rdi;
  sample->r10 = regs->r10;
  sample->r13 = regs->r13;
  sample->cx = regs->rcx;
  sample->cr0 = sregs->cr0;
  sample->cr3 = sregs->cr3;
  return kvmgdb_sample_fill(session->guest_memory, &paging, &sampler->sampling,
                            sampler->areas, sampler->current[vcpu->index],
                            sample, sizeof(sampler->record), NULL)
             ? NULL
             : sample;
}

/* How long a thread has waited for a CPU of the host until now, ns; 0 where the
 * host does not tell (Documentation/scheduler/sched-stats.rst). */
static uint64_t waited(const struct sampler *sampler, int vcpu) {
  char text[96];
  ssize_t length =
      pread(sampler->schedstat_fd[vcpu], text, sizeof(text) - 1, 0);
  if (length <= 0)
    return 0;
  text[length] = 0;
  char *end;
  strtoull(text, &end, 10); /* how long it ran */
  return strtoull(end, NULL, 10);
}

/* A vCPU that was interrupted stands now. */
static void finish(struct session *session, struct vcpu *vcpu) {
  struct sampler *sampler = session->sampler;
  uint64_t since = sampler->interrupted_ns[vcpu->index], seen = now_ns();
  if (vcpu->event) { /* a debug exit, which is not for us */
    vcpu->sampled = false;
    return;
  }
  /* A VMM also leaves KVM_RUN because a signal asks it to: then the guest did
   * nothing but run. */
  bool runs = (vcpu->phase == PHASE_PARKED && vcpu->at_kvm_run) ||
              vcpu->run->exit_reason == KVM_EXIT_INTR;
  struct kvmgdb_sample *sample =
      fill(session, vcpu, runs ? KVMGDB_SAMPLE_RUNNING : KVMGDB_SAMPLE_EXITED,
           since);
  uint64_t wait =
      waited(sampler, vcpu->index) - sampler->waited_ns[vcpu->index];
  stop_release_sampled(vcpu);
  if (!sample) {
    sampler->ring->failed++;
    return;
  }
  /* The wait counts from its beginning once it has ended: a thread that was
   * waiting when it was interrupted may have waited for longer than that. */
  uint64_t now = now_ns();
  sample->held_ns = wait < now - since ? now - since - wait : now - seen;
  write_record(sampler, sample, sample->size);
}

/* Finishes what has come to stand; false when nothing is under way any more. */
static bool finish_all(struct session *session) {
  bool waiting = false;
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    if (!vcpu->sampled)
      continue;
    if (vcpu->phase == PHASE_PARKED || vcpu->phase == PHASE_GLANCED)
      finish(session, vcpu);
    else if (vcpu->phase != PHASE_GONE)
      waiting = true;
  }
  return waiting;
}

/* ---- who is to be interrupted -------------------------------------------- */

enum whereabouts {
  RUNS,           /* somewhere: it must be stopped */
  SLEEPS_IN_KVM,  /* in KVM_RUN: the guest waits for an interrupt */
  SLEEPS_OUTSIDE, /* in its VMM */
};

/*
 * A thread that sleeps shows the system call that it sleeps in, one that runs
 * (or is to run) does not; nobody is disturbed by this.
 */
static enum whereabouts look(const struct session *session,
                             const struct vcpu *vcpu) {
  char text[192];
  ssize_t length = pread(session->sampler->syscall_fd[vcpu->index], text,
                         sizeof(text) - 1, 0);
  if (length <= 0)
    return RUNS;
  text[length] = 0;
  long number;
  unsigned long descriptor, request;
  if (sscanf(text, "%ld %lx %lx", &number, &descriptor, &request) != 3)
    return text[0] == 'r' ? RUNS : SLEEPS_OUTSIDE;
  return number == SYS_ioctl && request == KVM_RUN ? SLEEPS_IN_KVM
                                                   : SLEEPS_OUTSIDE;
}

/* The guest cannot go on while its thread sleeps in the VMM. */
static bool sample_outside(struct session *session, const struct vcpu *vcpu,
                           uint64_t time_ns) {
  switch (vcpu->run->exit_reason) {
  case KVM_EXIT_HLT:
    write_state(session, vcpu, KVMGDB_SAMPLE_HALTED, time_ns);
    return true;
  case KVM_EXIT_INTR:
  case KVM_EXIT_UNKNOWN:
    write_state(session, vcpu, KVMGDB_SAMPLE_STOPPED, time_ns);
    return true;
  }
  struct kvmgdb_sample *sample =
      fill(session, vcpu, KVMGDB_SAMPLE_EXITED, time_ns);
  if (!sample || look(session, vcpu) != SLEEPS_OUTSIDE)
    return false;
  write_record(session->sampler, sample, sample->size);
  return true;
}

/* Takes the sample of a vCPU that need not be stopped for it. */
static bool sample_asleep(struct session *session, const struct vcpu *vcpu,
                          uint64_t time_ns) {
  if (vcpu->group_stop) {
    write_state(session, vcpu, KVMGDB_SAMPLE_STOPPED, time_ns);
    return true;
  }
  switch (look(session, vcpu)) {
  case SLEEPS_IN_KVM:
    write_state(session, vcpu, KVMGDB_SAMPLE_HALTED, time_ns);
    return true;
  case SLEEPS_OUTSIDE:
    return sample_outside(session, vcpu, time_ns);
  case RUNS:
    break;
  }
  return false;
}

static void take_round(struct session *session) {
  struct sampler *sampler = session->sampler;
  bool wanted[KVMGDB_AGENT_MAX_VCPUS];
  for (int i = 0; i < session->vcpu_count; i++) {
    struct vcpu *vcpu = &session->vcpu[i];
    sampler->ring->missed += vcpu->sampled;
    wanted[i] = vcpu->phase == PHASE_RUNNING && !vcpu->sampled &&
                !sample_asleep(session, vcpu, now_ns());
  }
  for (int i = 0; i < session->vcpu_count; i++)
    if (wanted[i]) {
      sampler->waited_ns[i] = waited(sampler, i);
      sampler->interrupted_ns[i] = now_ns();
      stop_sample(&session->vcpu[i]);
    }
  sampler->ring->rounds++;
  uint64_t deadline = now_ns() + round_ns;
  do {
    stop_take_news(session);
  } while (finish_all(session) && !session->gone && tracee_sleep(deadline));
}

/* A vCPU that the client has stopped, or that stopped by itself. */
static bool is_in_use(const struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].phase == PHASE_PARKED && !session->vcpu[i].sampled)
      return true;
  return false;
}

static void count_late(struct session *session) {
  struct sampler *sampler = session->sampler;
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].sampled &&
        now_ns() - sampler->interrupted_ns[i] >= fail_ns) {
      sampler->ring->failed++;
      sampler->interrupted_ns[i] = now_ns();
    }
}

void sampler_run(struct session *session) {
  struct sampler *sampler = session->sampler;
  if (!sampler || session->gone)
    return;
  finish_all(session);
  count_late(session);
  uint64_t now = now_ns();
  if (now < sampler->due_ns)
    return;
  if (!is_in_use(session))
    take_round(session);
  now = now_ns();
  sampler->due_ns += next_interval(sampler);
  if (now >= sampler->due_ns) {
    uint64_t missed = 1 + (now - sampler->due_ns) / sampler->period_ns;
    sampler->ring->missed += missed * (uint64_t)session->vcpu_count;
    sampler->due_ns = now + next_interval(sampler);
  }
}
