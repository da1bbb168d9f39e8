#include "slots_guess.h"
#include "cleanup.h"
#include "maps.h"
#include "regs.h"
#include <string.h>

enum { MAX_SAMPLES = 16, MAX_LEVELS = 5, GUEST_PAGE = 4096 };

static const uint64_t smallest_ram = 1 << 20;
/* Neighbouring mappings are merged: RAM may begin inside one. */
static const uint64_t search_window = 32 << 20;
static const uint64_t high_memory = UINT64_C(1) << 32;

/*
 * Where low RAM ends, when all of it does not fit below the devices: QEMU's pc
 * (3 and 3.5 GiB) and q35 (2 and 2.75 GiB), Cloud Hypervisor and Firecracker
 * (3 GiB; 3.25 GiB formerly, as crosvm).
 */
static const uint64_t splits[] = {0xc0000000, 0x80000000, 0xd0000000,
                                  0xe0000000, 0xb0000000};

/* SDM volume 3, 4.5: bits of page-table entries. */
enum { ENTRY_PRESENT = 1, ENTRY_LARGE = 1 << 7 };
static const uint64_t entry_address = 0x000ffffffffff000;
static const uint64_t cr0_pg = UINT64_C(1) << 31;
static const uint64_t cr4_la57 = 1 << 12;
static const uint64_t efer_lma = 1 << 10;

/* An address whose translation KVM has told us. */
struct sample {
  uint64_t gva, gpa;
};

struct evidence {
  int count;
  struct sample sample[MAX_SAMPLES];
  uint64_t cr3;
  int levels;
};

static struct mapping largest_mapping(const struct session *session) {
  scoped_stream maps = maps_open(session->pid);
  struct mapping best = {0}, now;
  while (maps && maps_next(maps, &now))
    if (!strncmp(now.flags, "rw", 2) && strcmp(now.name, "[heap]") &&
        strcmp(now.name, "[stack]") &&
        now.end - now.start > best.end - best.start)
      best = now;
  return best;
}

/* RAM of `size` bytes, by guest-physical address. */
static int lay_out(uint64_t hva, uint64_t size, uint64_t split,
                   struct kvmgdb_agent_region *region) {
  uint64_t low = size < split ? size : split;
  region[0] =
      (struct kvmgdb_agent_region){.size = low, .hva = hva, .descriptor = -1};
  if (low == size)
    return 1;
  region[1] = (struct kvmgdb_agent_region){.gpa = high_memory,
                                           .size = size - low,
                                           .hva = hva + low,
                                           .descriptor = -1};
  return 2;
}

static bool read_entry(const struct session *session,
                       struct kvmgdb_agent_region *region, int count,
                       uint64_t gpa, bool used[2], uint64_t *entry) {
  for (int i = 0; i < count; i++) {
    if (gpa < region[i].gpa || gpa - region[i].gpa > region[i].size - 8)
      continue;
    used[i] = true;
    return pread(session->memory_fd, entry, 8,
                 (off_t)(region[i].hva + gpa - region[i].gpa)) == 8;
  }
  return false;
}

/* Our own walk, through memory as it is assumed to lie. */
static bool walk_agrees(const struct session *session,
                        const struct evidence *evidence,
                        const struct sample *sample,
                        struct kvmgdb_agent_region *region, int count,
                        bool used[2]) {
  uint64_t entry = evidence->cr3;
  for (int level = evidence->levels; level > 0; level--) {
    int shift = 12 + 9 * (level - 1);
    uint64_t place =
        (entry & entry_address) + 8 * ((sample->gva >> shift) & 0x1ff);
    if (!read_entry(session, region, count, place, used, &entry) ||
        !(entry & ENTRY_PRESENT))
      return false;
    if (level == 1 || (level <= 3 && (entry & ENTRY_LARGE))) {
      uint64_t inside = (UINT64_C(1) << shift) - 1;
      return ((entry & entry_address & ~inside) | (sample->gva & inside)) ==
             sample->gpa;
    }
  }
  return false;
}

/* Every sample must agree; *confirmed: the tables were read from region i. */
static bool all_agree(const struct session *session,
                      const struct evidence *evidence,
                      struct kvmgdb_agent_region *region, int count) {
  bool used[2] = {false, false};
  for (int i = 0; i < evidence->count; i++)
    if (!walk_agrees(session, evidence, &evidence->sample[i], region, count,
                     used))
      return false;
  for (int i = 0; i < count; i++)
    region[i].verified = used[i];
  return evidence->count > 0;
}

static void ask_kvm(struct session *session, struct vcpu *vcpu,
                    struct evidence *evidence) {
  const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[vcpu->index];
  const struct kvmgdb_agent_sregs *sregs = &shown->sregs;
  *evidence = (struct evidence){
      .cr3 = sregs->cr3, .levels = sregs->cr4 & cr4_la57 ? MAX_LEVELS : 4};
  const uint64_t addresses[] = {
      sregs->cs.base + shown->regs.rip,
      shown->regs.rsp,
      sregs->idt.base,
      sregs->gdt.base,
      sregs->tr.base,
      sregs->gs.base,
  };
  for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
    struct kvm_translation answer = {.linear_address = addresses[i]};
    struct agent_error ignored;
    if (!regs_ioctl(session, vcpu, KVMGDB_AGENT_TRANSLATE, &answer,
                    sizeof(answer), &ignored) &&
        answer.valid)
      evidence->sample[evidence->count++] =
          (struct sample){addresses[i], answer.physical_address};
  }
}

/* A vCPU that can tell something: stopped, in long mode, with paging. */
static struct vcpu *find_witness(struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++) {
    const struct kvmgdb_agent_vcpu *shown = &session->shared->vcpu[i];
    if (session->vcpu[i].phase == PHASE_PARKED && shown->registers_valid &&
        (shown->sregs.cr0 & cr0_pg) && (shown->sregs.efer & efer_lma))
      return &session->vcpu[i];
  }
  return NULL;
}

static bool find_base(const struct session *session,
                      const struct evidence *evidence,
                      const struct mapping *mapping, struct region_list *list) {
  uint64_t window = mapping->end - mapping->start;
  if (window > search_window)
    window = search_window;
  for (uint64_t skip = 0; skip < window; skip += GUEST_PAGE) {
    uint64_t size = mapping->end - mapping->start - skip;
    for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++) {
      if (i && size <= splits[i])
        continue; /* as without a hole, which was tried */
      list->count =
          lay_out(mapping->start + skip, size, splits[i], list->region);
      if (all_agree(session, evidence, list->region, list->count))
        return true;
    }
  }
  return false;
}

bool slots_guess(struct session *session, struct region_list *list) {
  struct mapping mapping = largest_mapping(session);
  if (mapping.end - mapping.start < smallest_ram)
    return false;
  struct vcpu *witness = find_witness(session);
  struct evidence evidence = {0};
  if (witness)
    ask_kvm(session, witness, &evidence);
  if (!evidence.count || !find_base(session, &evidence, &mapping, list))
    list->count = lay_out(mapping.start, mapping.end - mapping.start, splits[0],
                          list->region);
  return true;
}
