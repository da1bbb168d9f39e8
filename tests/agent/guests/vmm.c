/*
 * A VMM as plain as can be: vmm GUEST VCPUS [OPTION...], with its RAM at 0, and
 * each vCPU started by itself in 32-bit protected mode. It exits at once when
 * it sees what an attached debugger must hide from it: -EINTR from KVM_RUN
 * (unless "eintr" is given), a debug exit. Options:
 *
 *   seccomp   each vCPU thread allows itself only what it needs
 *   memfd     RAM is a memfd instead of private memory
 *   irqchip   KVM's interrupt controller: halts stay in the kernel
 *   eintr     -EINTR is an error no more
 *   pipe      being stuck is to fill standard output, until somebody reads it
 *   leave     at SIGUSR2 the thread of vCPU 1 ends
 *   handover  at SIGUSR2 another thread takes over vCPU 1, and its own ends
 *   spare     64 KiB of RAM more, at 64 GiB; at SIGUSR1, in turns, it goes away
 *             and other memory takes its place; at SIGHUP it is given back
 *   slotless  KVM is told of no memory, and vCPU 0 has nothing to run
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMORY = 64 << 20, LOAD = 1 << 20, MAX_VCPUS = 8 };
enum { LEAVING = 1, SPARE = 64 << 10 };
static const uint64_t SPARE_GPA = UINT64_C(64) << 30;
enum { SAW_EINTR = 3, SAW_DEBUG = 4, SAW_OTHER = 5, BAD_SETUP = 6 };

static int with_seccomp, with_memfd, with_irqchip, with_eintr;
static int with_two, without_vcpu, with_pipe;
static int with_leave, with_handover, with_spare, with_slotless;
static int kvm = -1, vm;
static volatile int is_leaving;

static struct {
  int fd;
  uint32_t number;
  uint32_t out, in, mmio;
  struct kvm_run *run;
} vcpus[MAX_VCPUS];

static void check(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(BAD_SETUP);
  }
}

static void restrict_thread(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pause, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 3, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
               offsetof(struct seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_RUN, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  check(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  check(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}

static void start_state(int index) {
  struct kvm_sregs sregs;
  check(!ioctl(vcpus[index].fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  struct kvm_segment flat = {.limit = 0xffffffff,
                             .selector = 0x10,
                             .type = 3,
                             .present = 1,
                             .s = 1,
                             .db = 1,
                             .g = 1};
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
  sregs.cs = flat;
  sregs.cs.selector = 0x18;
  sregs.cs.type = 11;
  sregs.cr0 |= 1;
  check(!ioctl(vcpus[index].fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = LOAD, .rflags = 2, .rbx = (uint64_t)index};
  check(!ioctl(vcpus[index].fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
  if (with_irqchip) {
    struct kvm_mp_state state = {KVM_MP_STATE_RUNNABLE};
    check(!ioctl(vcpus[index].fd, KVM_SET_MP_STATE, &state), "MP_STATE");
  }
}

/* More than a pipe holds. */
static void fill_output(void) {
  static const char text[1 << 17];
  for (size_t done = 0; done < sizeof(text);) {
    ssize_t written = write(1, text + done, sizeof(text) - done);
    if (written < 0)
      _exit(SAW_OTHER);
    done += (size_t)written;
  }
}

static void on_io(int index) {
  struct kvm_run *run = vcpus[index].run;
  uint8_t *data = (uint8_t *)run + run->io.data_offset;
  if (run->io.port >= 0x10 && run->io.port < 0x10 + MAX_VCPUS)
    vcpus[index].out++;
  else if (run->io.port >= 0x20 && run->io.port < 0x20 + MAX_VCPUS) {
    uint32_t value = ++vcpus[index].in;
    if (vcpus[index].out != value)
      value = UINT32_MAX;
    memcpy(data, &value, sizeof(value));
  } else if (run->io.port == 0x80) {
    if (with_pipe)
      fill_output();
    else
      for (;;)
        pause();
  }
}

static void on_mmio(int index) {
  struct kvm_run *run = vcpus[index].run;
  if (run->mmio.is_write) {
    vcpus[index].mmio++;
    return;
  }
  memcpy(run->mmio.data, &vcpus[index].mmio, sizeof(vcpus[index].mmio));
}

static void *go_on(void *argument) {
  int index = (int)(intptr_t)argument;
  struct kvm_run *run = vcpus[index].run;
  if (with_slotless) /* as VMMs name it: it never runs */
    prctl(PR_SET_NAME, "vcpu0");
  while (with_slotless)
    pause();
  for (;;) {
    if (ioctl(vcpus[index].fd, KVM_RUN, 0) < 0) {
      if (errno == EINTR && index == LEAVING && is_leaving) {
        is_leaving = 0;
        run->immediate_exit = 0;
        pthread_t heir;
        if (with_handover)
          check(!pthread_create(&heir, NULL, go_on, argument), "thread");
        return NULL;
      }
      if (errno == EINTR && with_eintr)
        continue;
      _exit(errno == EINTR ? SAW_EINTR : SAW_OTHER);
    }
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
      on_io(index);
      break;
    case KVM_EXIT_MMIO:
      on_mmio(index);
      break;
    case KVM_EXIT_HLT:
      for (;;)
        pause();
    case KVM_EXIT_DEBUG:
      _exit(SAW_DEBUG);
    default:
      _exit(SAW_OTHER);
    }
  }
  return NULL;
}

static void leave(int number) {
  (void)number;
  is_leaving = 1;
  vcpus[LEAVING].run->immediate_exit = 1;
}

static void *run_vcpu(void *argument) {
  int index = (int)(intptr_t)argument;
  start_state(index);
  if (with_seccomp)
    restrict_thread();
  if (index == LEAVING && (with_leave || with_handover)) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    check(!sigaction(SIGUSR2, &(struct sigaction){.sa_handler = leave}, NULL) &&
              !pthread_sigmask(SIG_UNBLOCK, &set, NULL),
          "SIGUSR2");
  }
  return go_on(argument);
}

/* Memory that comes and goes, with what KVM is told of it. */
static void *place;

static void change_spare(int present, char fill) {
  struct kvm_userspace_memory_region region = {.slot = 1,
                                               .guest_phys_addr = SPARE_GPA};
  if (!present) {
    check(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "no spare");
    check(!munmap(place, SPARE), "munmap");
    return;
  }
  place = mmap(NULL, SPARE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
               -1, 0);
  check(place != MAP_FAILED, "spare");
  memset(place, fill, SPARE);
  region.memory_size = SPARE;
  region.userspace_addr = (uint64_t)(uintptr_t)place;
  check(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "spare");
}

static void __attribute__((noreturn)) change_at_signals(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGHUP);
  int present = 1, number;
  for (char fill = 'a';;) {
    check(!sigwait(&set, &number), "sigwait");
    if (number == SIGHUP) {
      check(!madvise(place, SPARE, MADV_DONTNEED), "madvise");
      continue;
    }
    present = !present;
    fill = (char)(fill + present);
    change_spare(present, fill);
    puts(present ? "there" : "away");
    fflush(stdout);
  }
}

int main(int argc, char **argv) {
  if (argc < 3)
    return BAD_SETUP;
  int count = atoi(argv[2]);
  for (int i = 3; i < argc; i++) {
    with_seccomp |= !strcmp(argv[i], "seccomp");
    with_memfd |= !strcmp(argv[i], "memfd");
    with_irqchip |= !strcmp(argv[i], "irqchip");
    with_eintr |= !strcmp(argv[i], "eintr");
    with_two |= !strcmp(argv[i], "twice");
    without_vcpu |= !strcmp(argv[i], "novcpu");
    with_pipe |= !strcmp(argv[i], "pipe");
    with_leave |= !strcmp(argv[i], "leave");
    with_handover |= !strcmp(argv[i], "handover");
    with_slotless |= !strcmp(argv[i], "slotless");
    with_spare |= !strcmp(argv[i], "spare");
    sscanf(argv[i], "fd=%d", &kvm);
  }
  check(count > 0 && count <= MAX_VCPUS, "vCPUs");
  int file = with_memfd ? memfd_create("guest-ram", 0) : -1;
  check(!with_memfd || !ftruncate(file, MEMORY), "memfd");
  uint8_t *memory =
      mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
           with_memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, file, 0);
  check(memory != MAP_FAILED, "mmap");
  int image = open(argv[1], O_RDONLY);
  check(image >= 0 && read(image, memory + LOAD, MEMORY - LOAD) > 0, argv[1]);
  close(image);

  sigset_t ours;
  sigemptyset(&ours);
  sigaddset(&ours, SIGUSR1);
  sigaddset(&ours, SIGUSR2);
  sigaddset(&ours, SIGHUP);
  check(!pthread_sigmask(SIG_BLOCK, &ours, NULL), "signals");

  if (kvm < 0)
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "/dev/kvm");
  if (with_two)
    check(ioctl(kvm, KVM_CREATE_VM, 0) >= 0, "KVM_CREATE_VM");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  check(!ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
  if (with_irqchip)
    check(!ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
  struct kvm_userspace_memory_region region = {
      .memory_size = MEMORY, .userspace_addr = (uint64_t)memory};
  if (!with_slotless)
    check(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "memory region");
  if (with_spare)
    change_spare(1, 'a');
  int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (without_vcpu)
    count = 0;
  for (int i = 0; i < count; i++) {
    vcpus[i].fd = ioctl(vm, KVM_CREATE_VCPU, i);
    check(vcpus[i].fd >= 0, "KVM_CREATE_VCPU");
    vcpus[i].run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED,
                        vcpus[i].fd, 0);
    check(vcpus[i].run != MAP_FAILED, "kvm_run");
    static struct {
      struct kvm_cpuid2 head;
      struct kvm_cpuid_entry2 entry[256];
    } cpuid;
    cpuid.head.nent = 256;
    check(!ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "supported cpuid");
    check(!ioctl(vcpus[i].fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
  }
  for (int i = 0; i < count; i++) {
    pthread_t thread;
    check(!pthread_create(&thread, NULL, run_vcpu, (void *)(intptr_t)i),
          "thread");
  }
  puts("ready");
  fflush(stdout);
  if (with_spare)
    change_at_signals();
  for (;;)
    pause();
}
