#include "breakpoints.h"
#include "plant.h"
#include "probe.h"
#include "regs.h"
#include "watch.h"
#include <string.h>

static enum kvmgdb_agent_status require_stopped(struct session *session,
                                                struct agent_error *error) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (session->vcpu[i].phase != PHASE_PARKED &&
        session->vcpu[i].phase != PHASE_GONE)
      return agent_fail(error, KVMGDB_AGENT_RUNNING, 0, i, 0);
  return KVMGDB_AGENT_OK;
}

static bool is_valid(const struct kvmgdb_agent_breakpoint *breakpoint) {
  switch (breakpoint->kind) {
  case KVMGDB_AGENT_SOFTWARE:
    return breakpoint->hva != 0;
  case KVMGDB_AGENT_HARDWARE:
    return breakpoint->length == 1;
  case KVMGDB_AGENT_WRITE:
  case KVMGDB_AGENT_ACCESS:
    return (breakpoint->length == 1 || breakpoint->length == 2 ||
            breakpoint->length == 4 || breakpoint->length == 8) &&
           breakpoint->gva % breakpoint->length == 0;
  }
  return false;
}

static bool is_same(const struct breakpoint *have,
                    const struct kvmgdb_agent_breakpoint *wanted) {
  if (!have->used || have->kind != wanted->kind)
    return false;
  if (wanted->kind == KVMGDB_AGENT_SOFTWARE)
    return have->hva == wanted->hva;
  return have->gva == wanted->gva && have->length == wanted->length;
}

struct table {
  struct breakpoint *entry;
  int size;
  int *count;
};

/* Tried once; what a host's KVM can do does not change. One that interprets
 * guest code watches no data, and leaves user mode to the processor, whose
 * breakpoint exceptions go to the guest. */
static bool interprets_nothing(void) {
  static enum { NOT_TRIED, YES, NO } known = NOT_TRIED;
  if (known == NOT_TRIED)
    known = probe_watchpoints() ? YES : NO;
  return known == YES;
}

static struct table table_of(struct session *session, uint32_t kind) {
  if (kind == KVMGDB_AGENT_SOFTWARE)
    return (struct table){session->software, KVMGDB_AGENT_MAX_BREAKPOINTS,
                          &session->software_count};
  if (kind == KVMGDB_AGENT_WRITE && !interprets_nothing())
    return (struct table){session->stepped, KVMGDB_AGENT_MAX_HARDWARE,
                          &session->stepped_count};
  return (struct table){session->hardware, KVMGDB_AGENT_MAX_HARDWARE,
                        &session->hardware_count};
}

static bool is_for_execution(uint32_t kind) {
  return kind == KVMGDB_AGENT_SOFTWARE || kind == KVMGDB_AGENT_HARDWARE;
}

/* Whether a vCPU is there already: it hits before it runs (see debug.c), and a
 * debugger that steps another one may rely on that. */
static bool stands_at(const struct session *session, uint64_t gva) {
  for (int i = 0; i < session->vcpu_count; i++) {
    const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[i];
    if (shown->registers_valid && shown->sregs.cs.base + shown->regs.rip == gva)
      return true;
  }
  return false;
}

enum kvmgdb_agent_status
breakpoints_insert(struct session *session,
                   const struct kvmgdb_agent_breakpoint *wanted,
                   struct agent_error *error) {
  if (!is_valid(wanted))
    return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
  enum kvmgdb_agent_status status = require_stopped(session, error);
  if (status)
    return status;
  bool for_programs = wanted->user && is_for_execution(wanted->kind) &&
                      !stands_at(session, wanted->gva);
  if ((for_programs || wanted->kind == KVMGDB_AGENT_ACCESS) &&
      !interprets_nothing())
    return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, 0);
  struct table table = table_of(session, wanted->kind);
  int place = -1;
  for (int i = table.size - 1; i >= 0; i--) {
    if (is_same(&table.entry[i], wanted))
      return KVMGDB_AGENT_OK;
    if (!table.entry[i].used)
      place = i;
  }
  if (place < 0)
    return agent_fail(error, KVMGDB_AGENT_NO_FREE, 0, -1, table.size);
  struct breakpoint made = {
      .used = true,
      .kind = wanted->kind,
      .length = wanted->length,
      .gva = wanted->gva,
      .gpa = wanted->gpa,
      .hva = wanted->hva,
  };
  if (wanted->kind == KVMGDB_AGENT_SOFTWARE)
    status = plant_byte(session, place, wanted->hva, error);
  else if (table.entry == session->stepped && !session->perf)
    /* Stepping in turns misses writes where every exit has to be walked to. */
    return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1, wanted->kind);
  else if (table.entry == session->stepped)
    status = watch_prepare(session, &made, error);
  if (status)
    return status;
  table.entry[place] = made;
  (*table.count)++;
  session->debug_generation++;
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status
breakpoints_remove(struct session *session,
                   const struct kvmgdb_agent_breakpoint *wanted,
                   struct agent_error *error) {
  enum kvmgdb_agent_status status = require_stopped(session, error);
  if (status)
    return status;
  struct table table = table_of(session, wanted->kind);
  for (int i = 0; i < table.size; i++) {
    if (!is_same(&table.entry[i], wanted))
      continue;
    if (wanted->kind == KVMGDB_AGENT_SOFTWARE) {
      status = plant_remove(session, i, error);
      if (status)
        return status;
    }
    table.entry[i].used = false;
    (*table.count)--;
    session->debug_generation++;
    return KVMGDB_AGENT_OK;
  }
  return agent_fail(error, KVMGDB_AGENT_INVALID, 0, -1, 0);
}

/* Another address space may have other code at the same address, and the same
 * code elsewhere: what counts is where the byte lies. */
int breakpoints_software_at(struct session *session, struct vcpu *vcpu,
                            uint64_t gva) {
  bool candidate = false;
  for (int i = 0; i < KVMGDB_AGENT_MAX_BREAKPOINTS && !candidate; i++)
    candidate = session->software[i].used &&
                ((session->software[i].gpa ^ gva) & 0xfff) == 0;
  if (!candidate)
    return -1;
  struct kvm_translation translation = {.linear_address = gva};
  struct agent_error ignored;
  if (regs_ioctl(session, vcpu, KVMGDB_AGENT_TRANSLATE, &translation,
                 sizeof(translation), &ignored) ||
      !translation.valid)
    return -1;
  for (int i = 0; i < KVMGDB_AGENT_MAX_BREAKPOINTS; i++)
    if (session->software[i].used &&
        session->software[i].gpa == translation.physical_address)
      return i;
  return -1;
}

bool breakpoints_hardware_at(const struct session *session, uint64_t gva,
                             bool execution) {
  for (int i = 0; i < KVMGDB_AGENT_MAX_HARDWARE; i++) {
    const struct breakpoint *breakpoint = &session->hardware[i];
    const struct breakpoint *stepped = &session->stepped[i];
    if (breakpoint->used && breakpoint->gva == gva &&
        (breakpoint->kind == KVMGDB_AGENT_HARDWARE) == execution)
      return true;
    if (!execution && stepped->used && stepped->gva == gva)
      return true;
  }
  return false;
}

void breakpoints_clear(struct session *session) {
  plant_remove_all(session);
  memset(session->software, 0, sizeof(session->software));
  memset(session->hardware, 0, sizeof(session->hardware));
  memset(session->stepped, 0, sizeof(session->stepped));
  session->software_count = 0;
  session->hardware_count = 0;
  session->stepped_count = 0;
  session->debug_generation++;
}
