#include "machine.h"

#include "tables.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* Three pages and one that KVM needs below 4 GiB (as other VMMs place them). */
#define IDENTITY_MAP_ADDRESS 0xfffbc000ULL
#define TSS_ADDRESS 0xfffbd000UL
#define IOAPIC_PINS 24

static bool open_kvm(struct machine *machine, struct vmm_error *error) {
  machine->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (machine->kvm_fd < 0 && errno == ENOENT)
    return vmm_fail(error, "no /dev/kvm; load the module (modprobe kvm_intel "
                           "or kvm_amd) or switch virtualisation on in the "
                           "firmware");
  if (machine->kvm_fd < 0 && errno == EACCES)
    return vmm_fail(error, "no permission for /dev/kvm; join its group "
                           "(usermod -aG kvm USER) and log in again");
  if (machine->kvm_fd < 0)
    return vmm_fail(error, "cannot open /dev/kvm: %s", strerror(errno));
  int version = ioctl(machine->kvm_fd, KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION)
    return vmm_fail(error, "/dev/kvm has API version %d, not %d", version,
                    KVM_API_VERSION);
  machine->vm_fd = ioctl(machine->kvm_fd, KVM_CREATE_VM, 0);
  if (machine->vm_fd < 0)
    return vmm_fail(error, "KVM_CREATE_VM: %s", strerror(errno));
  int size = ioctl(machine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < (int)sizeof(struct kvm_run))
    return vmm_fail(error, "KVM_GET_VCPU_MMAP_SIZE: %d", size);
  machine->run_size = (size_t)size;
  return true;
}

static bool check_limits(struct machine *machine, struct vmm_error *error) {
  static const struct {
    int extension;
    const char *what;
  } needed[] = {
      {KVM_CAP_USER_MEMORY, "user memory regions"},
      {KVM_CAP_IRQCHIP, "an in-kernel interrupt controller"},
      {KVM_CAP_IRQ_ROUTING, "interrupt routing"},
      {KVM_CAP_MP_STATE, "vCPU run states"},
      {KVM_CAP_XSAVE, "KVM_GET_XSAVE"},
      {KVM_CAP_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"},
      {KVM_CAP_DEBUGREGS, "KVM_GET_DEBUGREGS"},
  };
  for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
    if (ioctl(machine->vm_fd, KVM_CHECK_EXTENSION, needed[i].extension) <= 0)
      return vmm_fail(error, "/dev/kvm of this host does not offer %s",
                      needed[i].what);
  int most = ioctl(machine->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
  if (most > TABLES_CPUS_MAX || most <= 0)
    most = TABLES_CPUS_MAX;
  if (machine->vcpu_count == 0 || machine->vcpu_count > (unsigned)most)
    return vmm_fail(error, "%u vCPUs; this host supports 1 to %d",
                    machine->vcpu_count, most);
  return true;
}

static bool add_slot(struct machine *machine, uint32_t slot, uint64_t gpa,
                     uint64_t size, struct vmm_error *error) {
  struct kvm_userspace_memory_region region = {
      .slot = slot,
      .guest_phys_addr = gpa,
      .memory_size = size,
      .userspace_addr = (uint64_t)guest_ram_at(&machine->ram, gpa, size),
  };
  if (ioctl(machine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
    return vmm_fail(error, "cannot give the guest %llu MiB at %#llx: %s",
                    (unsigned long long)size >> 20, (unsigned long long)gpa,
                    strerror(errno));
  return true;
}

/* As on a PC: each ISA line to its 8259 pin and to the I/O APIC. */
static bool set_irq_routing(struct machine *machine, struct vmm_error *error) {
  struct {
    struct kvm_irq_routing header;
    struct kvm_irq_routing_entry entries[16 + IOAPIC_PINS];
  } routing = {0};
  for (uint32_t gsi = 0; gsi < IOAPIC_PINS; gsi++) {
    struct kvm_irq_routing_entry entry = {.gsi = gsi,
                                          .type = KVM_IRQ_ROUTING_IRQCHIP};
    if (gsi < 16 && gsi != IOAPIC_TIMER_PIN) {
      entry.u.irqchip.irqchip =
          gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
      entry.u.irqchip.pin = gsi % 8;
      routing.entries[routing.header.nr++] = entry;
    }
    if (gsi != IOAPIC_TIMER_PIN) {
      entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
      entry.u.irqchip.pin = gsi == 0 ? IOAPIC_TIMER_PIN : gsi;
      routing.entries[routing.header.nr++] = entry;
    }
  }
  if (ioctl(machine->vm_fd, KVM_SET_GSI_ROUTING, &routing) < 0)
    return vmm_fail(error, "KVM_SET_GSI_ROUTING: %s", strerror(errno));
  return true;
}

static bool create_interrupts(struct machine *machine,
                              struct vmm_error *error) {
  uint64_t identity_map = IDENTITY_MAP_ADDRESS;
  /* Only a processor without unrestricted guest mode uses these two. */
  if (ioctl(machine->vm_fd, KVM_CHECK_EXTENSION,
            KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 &&
      ioctl(machine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
    return vmm_fail(error, "KVM_SET_IDENTITY_MAP_ADDR: %s", strerror(errno));
  if (ioctl(machine->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SET_TSS_ADDR) > 0 &&
      ioctl(machine->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
    return vmm_fail(error, "KVM_SET_TSS_ADDR: %s", strerror(errno));
  if (ioctl(machine->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
    return vmm_fail(error,
                    "KVM_CREATE_IRQCHIP: %s; this VMM has no interrupt "
                    "controller of its own",
                    strerror(errno));
  if (!set_irq_routing(machine, error))
    return false;
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
  machine->has_pit =
      ioctl(machine->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_PIT2) > 0;
  if (machine->has_pit && ioctl(machine->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
    return vmm_fail(error, "KVM_CREATE_PIT2: %s", strerror(errno));
  for (uint32_t chip = 0; chip < 3; chip++) {
    machine->irqchip[chip].chip_id = chip;
    if (ioctl(machine->vm_fd, KVM_GET_IRQCHIP, &machine->irqchip[chip]) < 0)
      return vmm_fail(error, "KVM_GET_IRQCHIP: %s", strerror(errno));
  }
  if (machine->has_pit &&
      ioctl(machine->vm_fd, KVM_GET_PIT2, &machine->pit) < 0)
    return vmm_fail(error, "KVM_GET_PIT2: %s", strerror(errno));
  return true;
}

/* Memory and registers of the entry state; all vCPUs are as after reset. */
static bool load(struct machine *machine, struct vmm_error *error) {
  return mptable_write(&machine->ram, machine->vcpu_count, error) &&
         acpi_write(&machine->ram, machine->vcpu_count, &machine->source.rsdp,
                    error) &&
         boot_load(&machine->source, &machine->ram, &machine->entry, error) &&
         vcpu_set_entry(&machine->vcpus[0], &machine->entry, error);
}

bool machine_create(uint64_t memory, unsigned vcpu_count,
                    const struct boot_source *source, int wake_fd,
                    struct machine *machine, struct vmm_error *error) {
  machine->kvm_fd = machine->vm_fd = -1;
  machine->wake_fd = wake_fd;
  machine->source = *source;
  machine->vcpu_count = vcpu_count;
  pthread_mutex_init(&machine->lock, NULL);
  pthread_cond_init(&machine->may_run, NULL);
  if (!open_kvm(machine, error) || !check_limits(machine, error) ||
      !guest_ram_create(memory, &machine->ram, error) ||
      !create_interrupts(machine, error) ||
      !add_slot(machine, 0, 0, guest_ram_low_size(&machine->ram), error))
    return false;
  uint64_t high = guest_ram_high_size(&machine->ram);
  if (high > 0 && !add_slot(machine, 1, RAM_HIGH_BASE, high, error))
    return false;
  cmos_init(&machine->ports.cmos, guest_ram_low_size(&machine->ram), high);
  machine->vcpus = calloc(vcpu_count, sizeof(*machine->vcpus));
  if (!machine->vcpus)
    return vmm_fail(error, "no host memory for %u vCPUs", vcpu_count);
  for (unsigned i = 0; i < vcpu_count; i++) {
    machine->vcpus[i].machine = machine;
    if (!vcpu_create(machine->kvm_fd, machine->vm_fd, machine->run_size, i,
                     vcpu_count, &machine->vcpus[i], error))
      return false;
  }
  return load(machine, error);
}

bool machine_start(struct machine *machine, bool paused,
                   struct vmm_error *error) {
  machine->goal = paused ? GOAL_HOLD : GOAL_RUN;
  if (paused && !vcpu_set_held(&machine->vcpus[0], true, error))
    return false;
  /* A thread needs the lock before it runs: none is kicked before it is. */
  int failed = 0;
  pthread_mutex_lock(&machine->lock);
  for (unsigned i = 0; i < machine->vcpu_count && !failed; i++) {
    struct vcpu *vcpu = &machine->vcpus[i];
    char name[16];
    snprintf(name, sizeof(name), "vcpu-%u", i);
    failed = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
    if (!failed)
      pthread_setname_np(vcpu->thread, name);
  }
  if (failed)
    return vmm_fail(error, "cannot start the threads of %u vCPUs: %s",
                    machine->vcpu_count, strerror(failed));
  for (unsigned i = 0; i < machine->vcpu_count; i++)
    while (!machine->vcpus[i].entered)
      pthread_cond_wait(&machine->may_run, &machine->lock);
  pthread_mutex_unlock(&machine->lock);
  return true;
}

void machine_set_irq(struct machine *machine, unsigned irq, bool level) {
  struct kvm_irq_level line = {.irq = irq, .level = level};
  ioctl(machine->vm_fd, KVM_IRQ_LINE, &line);
}

static void lock(struct machine *machine) {
  pthread_mutex_lock(&machine->lock);
}

/* Unlocks, and lets everybody see what has changed. */
static void unlock_changed(struct machine *machine) {
  pthread_cond_broadcast(&machine->may_run);
  pthread_mutex_unlock(&machine->lock);
  machine_kick(machine);
  eventfd_write(machine->wake_fd, 1);
}

static bool all_parked(const struct machine *machine) {
  for (unsigned i = 0; i < machine->vcpu_count; i++)
    if (!machine->vcpus[i].parked)
      return false;
  return true;
}

const char *machine_state_name(struct machine *machine) {
  lock(machine);
  const char *name;
  if (machine->reset_pending)
    name = "resetting";
  else if (machine->goal == GOAL_HOLD)
    name = "paused";
  else if (machine->goal == GOAL_RUN)
    name = "running";
  else if (!all_parked(machine))
    name = "stopping";
  else
    name = machine->fault.valid ? "faulted" : "stopped";
  pthread_mutex_unlock(&machine->lock);
  return name;
}

bool machine_cont(struct machine *machine, struct vmm_error *error) {
  lock(machine);
  if (machine->fault.valid && !machine->fault.resumable &&
      !machine->reset_pending) {
    pthread_mutex_unlock(&machine->lock);
    return vmm_fail(error, "the guest cannot go on after a triple fault; "
                           "use reset");
  }
  machine->fault.valid = false;
  machine->goal = GOAL_RUN;
  unlock_changed(machine);
  return true;
}

void machine_stop(struct machine *machine) {
  lock(machine);
  /* Before its first instruction it stands still already, and stays so. */
  if (machine->goal == GOAL_RUN)
    machine->goal = machine->reset_pending || machine->vcpus[0].held
                        ? GOAL_HOLD
                        : GOAL_STOP;
  unlock_changed(machine);
}

void machine_reset(struct machine *machine) {
  lock(machine);
  machine->reset_pending = true;
  if (machine->goal == GOAL_STOP)
    machine->goal = GOAL_HOLD;
  unlock_changed(machine);
}

/* With all vCPUs parked, their threads touch nothing of what is set here. */
static bool reset_now(struct machine *machine, struct vmm_error *error) {
  for (unsigned i = 0; i < machine->vcpu_count; i++)
    if (!vcpu_reset(&machine->vcpus[i], error))
      return false;
  for (unsigned chip = 0; chip < 3; chip++)
    if (ioctl(machine->vm_fd, KVM_SET_IRQCHIP, &machine->irqchip[chip]) < 0)
      return vmm_fail(error, "KVM_SET_IRQCHIP: %s", strerror(errno));
  if (machine->has_pit &&
      ioctl(machine->vm_fd, KVM_SET_PIT2, &machine->pit) < 0)
    return vmm_fail(error, "KVM_SET_PIT2: %s", strerror(errno));
  ports_reset(&machine->ports);
  if (!guest_ram_clear(&machine->ram, error) || !load(machine, error))
    return false;
  machine->fault.valid = false;
  machine->reset_count++;
  return machine->goal != GOAL_HOLD ||
         vcpu_set_held(&machine->vcpus[0], true, error);
}

bool machine_settle(struct machine *machine, struct vmm_error *error) {
  bool done = true;
  lock(machine);
  if (machine->reset_pending && all_parked(machine)) {
    done = reset_now(machine, error);
    machine->reset_pending = false;
    pthread_cond_broadcast(&machine->may_run);
  }
  pthread_mutex_unlock(&machine->lock);
  return done;
}

bool machine_exit_pending(struct machine *machine, int *status) {
  lock(machine);
  bool pending = machine->exit_pending;
  *status = machine->exit_status;
  pthread_mutex_unlock(&machine->lock);
  return pending;
}

void machine_get_fault(struct machine *machine, struct fault *fault) {
  lock(machine);
  *fault = machine->fault;
  pthread_mutex_unlock(&machine->lock);
}

void machine_request_reset(struct machine *machine) {
  lock(machine);
  machine->reset_pending = true;
  unlock_changed(machine);
}

void machine_request_exit(struct machine *machine, int status) {
  lock(machine);
  if (!machine->exit_pending) {
    machine->exit_pending = true;
    machine->exit_status = status;
    machine->goal = GOAL_STOP;
  }
  unlock_changed(machine);
}

void machine_report_fault(struct machine *machine, const struct fault *fault) {
  lock(machine);
  /* The first one is the cause; others are what it did to the rest. */
  if (!machine->fault.valid)
    machine->fault = *fault;
  machine->goal = GOAL_STOP;
  unlock_changed(machine);
}
