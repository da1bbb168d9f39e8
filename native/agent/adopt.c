#include "adopt.h"
#include "attach.h"
#include "cleanup.h"
#include "discover.h"
#include "guardian.h"
#include "perf.h"
#include "stop.h"
#include "threads.h"
#include "tracee.h"
#include <errno.h>
#include <sys/mman.h>

static const uint64_t find_threads_ns = 1000000000;

static struct vcpu *known_vcpu(struct session *session, int id) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].id == id)
      return &session->vcpu[i];
  return NULL;
}

/* Those that we hold show nothing to a look from outside. */
static void name_known_threads(struct session *session, struct discovery *found,
                               bool *all) {
  *all = true;
  for (int i = 0; i < found->info.vcpu_count; i++) {
    const struct vcpu *known = known_vcpu(session, found->vcpu[i].id);
    if (known && known->phase != PHASE_GONE)
      found->vcpu[i].tid = known->tid;
    else if (!known)
      *all &= found->vcpu[i].tid != 0;
  }
}

static bool is_new(struct session *session,
                   const struct kvmgdb_agent_found_vcpu *found) {
  const struct vcpu *known = known_vcpu(session, found->id);
  return found->tid &&
         (!known || (known->phase == PHASE_GONE && known->tid != found->tid));
}

/* Its place among the session's: the one that it had, or the next. */
static enum kvmgdb_agent_status
take_in(struct session *session, const struct kvmgdb_agent_found_vcpu *found,
        struct agent_error *error) {
  struct vcpu *vcpu = known_vcpu(session, found->id);
  bool added = !vcpu;
  if (added && session->vcpu_count == KVMGDB_AGENT_MAX_VCPUS)
    return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1,
                      KVMGDB_AGENT_MAX_VCPUS);
  int index = added ? session->vcpu_count : vcpu->index;
  if (added)
    vcpu = &session->vcpu[index];
  else {
    munmap(vcpu->run, sizeof(*vcpu->run));
    close_descriptor(&vcpu->perf_fd);
  }
  *vcpu = (struct vcpu){.index = index,
                        .id = found->id,
                        .fd = found->fd,
                        .tid = found->tid,
                        .seccomp = found->seccomp,
                        .phase = PHASE_GONE,
                        .perf_fd = -1};
  session->journal->vcpu[index] = (struct journal_vcpu){0};
  enum kvmgdb_agent_status status = session_map_kvm_run(session, vcpu, error);
  if (status)
    return status;
  if (vcpu->seccomp && !tracee_may_suspend_seccomp())
    return agent_fail(error, KVMGDB_AGENT_SECCOMP, 0, index, 0);
  if (session->perf && !perf_open_vcpu(vcpu))
    return agent_fail(error, KVMGDB_AGENT_HOST, 0, index, 0);
  struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[index];
  *shown = (struct kvmgdb_agent_vcpu){.id = vcpu->id, .tid = vcpu->tid};
  if (added)
    session->vcpu_count++;
  return KVMGDB_AGENT_OK;
}

static enum kvmgdb_agent_status hold(struct session *session, struct vcpu *vcpu,
                                     uint64_t deadline,
                                     struct agent_error *error) {
  enum kvmgdb_agent_status status = session_seize(vcpu, error);
  if (!status)
    status = stop_vcpus(session, vcpu->index, deadline, error);
  if (!status && session->sync_regs)
    session_set_valid_regs(session, vcpu);
  return status;
}

enum kvmgdb_agent_status adopt_vcpus(struct session *session, int control,
                                     uint64_t timeout_ns,
                                     struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].phase != PHASE_PARKED &&
        session->vcpu[i].phase != PHASE_GONE)
      return agent_fail(error, KVMGDB_AGENT_RUNNING, 0, i, 0);
  scoped_memory struct discovery *found = malloc(sizeof(*found));
  if (!found)
    return agent_fail(error, KVMGDB_AGENT_HOST, ENOMEM, -1, 0);
  enum kvmgdb_agent_status status = discover(session->pid, found, error);
  if (status && status != KVMGDB_AGENT_TRACED) /* by us */
    return status;
  bool all;
  name_known_threads(session, found, &all);
  if (!all) {
    status = threads_find(found, find_threads_ns, error);
    if (status)
      return status;
  }
  status = KVMGDB_AGENT_OK;
  bool is_taken[KVMGDB_AGENT_MAX_VCPUS] = {false};
  bool any = false;
  for (int i = 0; !status && i < found->info.vcpu_count; i++) {
    if (!is_new(session, &found->vcpu[i]))
      continue;
    status = take_in(session, &found->vcpu[i], error);
    if (!status)
      any = is_taken[known_vcpu(session, found->vcpu[i].id)->index] = true;
  }
  if (!status && any)
    status = guardian_renew(session, control, error);
  uint64_t deadline = now_ns() + timeout_ns;
  for (int i = 0; !status && i < session->vcpu_count; i++)
    if (is_taken[i])
      status = hold(session, &session->vcpu[i], deadline, error);
  session->shared->vcpu_count = (uint32_t)session->vcpu_count;
  return status;
}
