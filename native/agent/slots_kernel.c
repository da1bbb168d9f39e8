#include "slots_kernel.h"
#include "cleanup.h"
#include "kernel_memory.h"
#include "kernel_types.h"
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

/*
 * KVM's own table (include/linux/kvm_host.h since 5.17): struct kvm holds one
 * struct kvm_memslots for each address space, in which the slots hang in 128
 * lists by their id; `node_idx` says which of a slot's two list nodes this
 * table uses.
 */
enum { BUCKETS = 128, MAX_CHAIN = 4096, TRIES = 5, FRAME_SHIFT = 12 };

/* kvm_memory_slot.flags: a slot that is being changed. */
static const uint32_t slot_invalid = 1u << 16;

struct layout {
  int64_t task_files, files_table, table_files, file_private;
  int64_t kvm_slots, generation, hash, node_index;
  int64_t slot_node, slot_gfn, slot_pages, slot_hva, slot_flags;
  int64_t slot_size;
};

static bool find_layout(struct layout *layout) {
  struct kernel_types *types = kernel_types_open();
  if (!types)
    return false;
  const struct {
    int64_t *offset;
    const char *structure, *member;
  } wanted[] = {
      {&layout->task_files, "task_struct", "files"},
      {&layout->files_table, "files_struct", "fdt"},
      {&layout->table_files, "fdtable", "fd"},
      {&layout->file_private, "file", "private_data"},
      {&layout->kvm_slots, "kvm", "memslots"},
      {&layout->generation, "kvm_memslots", "generation"},
      {&layout->hash, "kvm_memslots", "id_hash"},
      {&layout->node_index, "kvm_memslots", "node_idx"},
      {&layout->slot_node, "kvm_memory_slot", "id_node"},
      {&layout->slot_gfn, "kvm_memory_slot", "base_gfn"},
      {&layout->slot_pages, "kvm_memory_slot", "npages"},
      {&layout->slot_hva, "kvm_memory_slot", "userspace_addr"},
      {&layout->slot_flags, "kvm_memory_slot", "flags"},
  };
  bool found = true;
  for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
    *wanted[i].offset =
        kernel_types_offset(types, wanted[i].structure, wanted[i].member);
    found &= *wanted[i].offset >= 0;
  }
  layout->slot_size = kernel_types_size(types, "kvm_memory_slot");
  kernel_types_close(types);
  return found;
}

/* From a descriptor of ours to the struct kvm behind it. */
static uint64_t kvm_of(int reader, const struct layout *layout, int vm) {
  uint64_t task = kernel_memory_current_task(reader);
  uint64_t files =
      kernel_memory_pointer(reader, task + (uint64_t)layout->task_files);
  uint64_t table =
      kernel_memory_pointer(reader, files + (uint64_t)layout->files_table);
  uint64_t array =
      kernel_memory_pointer(reader, table + (uint64_t)layout->table_files);
  uint64_t file = kernel_memory_pointer(reader, array + 8 * (uint64_t)vm);
  return kernel_memory_pointer(reader, file + (uint64_t)layout->file_private);
}

static bool read_slot(int reader, const struct layout *layout, uint64_t slot,
                      struct region_list *list) {
  uint64_t frame, pages, hva;
  uint32_t flags;
  if (list->count == KVMGDB_AGENT_MAX_REGIONS ||
      !kernel_memory_read(reader, slot + (uint64_t)layout->slot_gfn, &frame,
                          sizeof(frame)) ||
      !kernel_memory_read(reader, slot + (uint64_t)layout->slot_pages, &pages,
                          sizeof(pages)) ||
      !kernel_memory_read(reader, slot + (uint64_t)layout->slot_hva, &hva,
                          sizeof(hva)) ||
      !kernel_memory_read(reader, slot + (uint64_t)layout->slot_flags, &flags,
                          sizeof(flags)))
    return false;
  if (!pages || (flags & slot_invalid))
    return true;
  list->region[list->count++] = (struct kvmgdb_agent_region){
      .gpa = frame << FRAME_SHIFT,
      .size = pages << FRAME_SHIFT,
      .hva = hva,
      .descriptor = -1,
      .verified = 1,
      .slot = 1,
      .read_only = !!(flags & KVM_MEM_READONLY),
  };
  return true;
}

static bool read_table(int reader, const struct layout *layout, uint64_t table,
                       struct region_list *list) {
  uint64_t bucket[BUCKETS];
  int32_t index;
  list->count = 0;
  if (!kernel_memory_read(reader, table + (uint64_t)layout->hash, bucket,
                          sizeof(bucket)) ||
      !kernel_memory_read(reader, table + (uint64_t)layout->node_index, &index,
                          sizeof(index)) ||
      (index != 0 && index != 1))
    return false;
  uint64_t node_offset =
      (uint64_t)layout->slot_node + (uint64_t)index * 2 * sizeof(void *);
  int seen = 0;
  for (int i = 0; i < BUCKETS; i++)
    for (uint64_t node = bucket[i]; node;
         node = kernel_memory_pointer(reader, node))
      if (++seen > MAX_CHAIN ||
          !read_slot(reader, layout, node - node_offset, list))
        return false;
  return true;
}

/* Nothing keeps the VMM from changing its slots meanwhile: a table counts when
 * its generation was the same before and after, and it still is the table. */
static bool read_consistent(int reader, const struct layout *layout,
                            uint64_t kvm, struct region_list *list) {
  for (int i = 0; i < TRIES; i++) {
    uint64_t place = kvm + (uint64_t)layout->kvm_slots;
    uint64_t table = kernel_memory_pointer(reader, place);
    uint64_t generation = table + (uint64_t)layout->generation;
    uint64_t before = kernel_memory_pointer(reader, generation);
    if (table && read_table(reader, layout, table, list) &&
        kernel_memory_pointer(reader, place) == table &&
        kernel_memory_pointer(reader, generation) == before)
      return true;
  }
  return false;
}

bool slots_from_kernel(const struct session *session,
                       struct region_list *list) {
  static struct layout layout;
  static enum { NOT_TRIED, KNOWN, UNKNOWN } state = NOT_TRIED;
  if (state == NOT_TRIED)
    state = find_layout(&layout) ? KNOWN : UNKNOWN;
  scoped_fd reader = state == KNOWN ? kernel_memory_open() : -1;
  if (reader < 0)
    return false;
  scoped_fd vm =
      (int)syscall(SYS_pidfd_getfd, session->pid_fd, session->vm_fd, 0);
  uint64_t kvm = vm < 0 ? 0 : kvm_of(reader, &layout, vm);
  return kvm && read_consistent(reader, &layout, kvm, list);
}
