#include "discover.h"
#include "cleanup.h"
#include "kernel_fs.h"
#include "maps.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* include/linux/sched.h: threads that run kernel code only, though they are
 * listed under the VMM (io_uring workers, vhost and KVM's recovery thread). */
enum {
  FLAG_IO_WORKER = 0x00000010,
  FLAG_USER_WORKER = 0x00004000,
  FLAG_KERNEL_THREAD = 0x00200000,
};

static int open_process_file(pid_t pid, const char *name, int flags) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
  return open(path, flags | O_CLOEXEC);
}

/* The value of "Name:\tVALUE" in a thread's status file, or -1. */
static long status_value(pid_t pid, pid_t tid, const char *name) {
  char path[64], line[256];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
  scoped_stream file = fopen(path, "re");
  size_t length = strlen(name);
  while (file && fgets(line, sizeof(line), file))
    if (!strncmp(line, name, length) && line[length] == ':')
      return strtol(line + length + 1, NULL, 10);
  return -1;
}

/* NSpid lists one number for each PID namespace the process is in. */
static bool in_other_pid_namespace(pid_t pid) {
  char path[64], line[256];
  snprintf(path, sizeof(path), "/proc/%d/status", pid);
  scoped_stream file = fopen(path, "re");
  while (file && fgets(line, sizeof(line), file)) {
    int first, second;
    if (!strncmp(line, "NSpid:", 6))
      return sscanf(line + 6, "%d %d", &first, &second) == 2;
  }
  return false;
}

static uint8_t program_bits(pid_t pid) {
  unsigned char ident[EI_NIDENT];
  scoped_fd exe = open_process_file(pid, "exe", O_RDONLY);
  if (exe < 0 || read(exe, ident, sizeof(ident)) != (ssize_t)sizeof(ident))
    return 64;
  return ident[EI_CLASS] == ELFCLASS32 ? 32 : 64;
}

uint32_t discover_seccomp(pid_t pid, pid_t tid) {
  long mode = status_value(pid, tid, "Seccomp");
  return mode > 0 ? (uint32_t)mode : 0;
}

static bool same_file(pid_t pid, int first, int second) {
  return syscall(SYS_kcmp, pid, pid, KCMP_FILE, first, second) == 0;
}

static enum kvmgdb_agent_status
find_descriptors(pid_t pid, struct discovery *out, struct agent_error *error) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/fd", pid);
  scoped_directory directory = opendir(path);
  if (!directory) {
    bool gone = errno == ENOENT || errno == ESRCH;
    return agent_fail(error,
                      gone ? KVMGDB_AGENT_NO_PROCESS : KVMGDB_AGENT_PERMISSION,
                      errno, -1, 0);
  }
  struct kvmgdb_agent_discovery *info = &out->info;
  struct dirent *entry;
  while ((entry = readdir(directory))) {
    char target[128];
    ssize_t length =
        readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);
    if (length <= 0)
      continue;
    target[length] = 0;
    int fd = atoi(entry->d_name), id;
    if (!strcmp(target, "anon_inode:kvm-vm")) {
      if (!info->vm_count || !same_file(pid, info->vm_fd, fd)) {
        if (!info->vm_count)
          info->vm_fd = fd;
        info->vm_count++;
      }
    } else if (sscanf(target, "anon_inode:kvm-vcpu:%d", &id) == 1) {
      int known = 0;
      while (known < info->vcpu_count && out->vcpu[known].id != id)
        known++;
      if (known < info->vcpu_count) /* a duplicate of one we have */
        continue;
      if (info->vcpu_count == KVMGDB_AGENT_MAX_VCPUS)
        return agent_fail(error, KVMGDB_AGENT_UNSUPPORTED, 0, -1,
                          KVMGDB_AGENT_MAX_VCPUS);
      out->vcpu[info->vcpu_count++] =
          (struct kvmgdb_agent_found_vcpu){.id = id, .fd = fd};
    } else if (!strcmp(target, "/dev/sev") ||
               !strcmp(target, "/dev/tdx_guest")) {
      /* A VMM keeps /dev/sev open only to run an encrypted guest. */
      info->confidential = 1;
    }
  }
  return KVMGDB_AGENT_OK;
}

static int by_id(const void *left, const void *right) {
  const struct kvmgdb_agent_found_vcpu *a = left, *b = right;
  return (a->id > b->id) - (a->id < b->id);
}

static void find_kvm_run(pid_t pid, struct discovery *out) {
  scoped_stream maps = maps_open(pid);
  struct mapping mapping;
  while (maps && maps_next(maps, &mapping)) {
    int id;
    if (sscanf(mapping.name, "anon_inode:kvm-vcpu:%d", &id) != 1)
      continue;
    for (int i = 0; i < out->info.vcpu_count; i++)
      if (out->vcpu[i].id == id && !out->vcpu[i].kvm_run)
        out->vcpu[i].kvm_run = mapping.start;
  }
}

/* What follows the name in a thread's stat file; false when it has ended. The
 * name may hold anything, parentheses included: the last one ends it. */
static bool read_stat(pid_t pid, pid_t tid, char *state, unsigned *flags) {
  char path[64], text[512];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
  scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
  if (length <= 0)
    return false;
  text[length] = 0;
  char *end = strrchr(text, ')');
  return end &&
         sscanf(end + 1, " %c %*d %*d %*d %*d %*d %u", state, flags) == 2;
}

bool discover_is_user_thread(pid_t pid, pid_t tid) {
  char state;
  unsigned flags;
  return read_stat(pid, tid, &state, &flags) &&
         !(flags & (FLAG_IO_WORKER | FLAG_USER_WORKER | FLAG_KERNEL_THREAD));
}

bool discover_is_asleep(pid_t pid, pid_t tid) {
  char state;
  unsigned flags;
  return read_stat(pid, tid, &state, &flags) && state == 'S';
}

/* The kernel's first PID namespace has a fixed inode: PROC_PID_INIT_INO,
 * include/linux/proc_ns.h. */
static bool in_first_pid_namespace(void) {
  struct stat status;
  return !stat("/proc/self/ns/pid", &status) && status.st_ino == 0xeffffffc;
}

/* KVM's own record of which thread last ran a vCPU, by the numbers of the first
 * PID namespace: in another they would name other machines and threads. */
static void threads_from_debugfs(struct discovery *out) {
  if (!in_first_pid_namespace())
    return;
  scoped_fd root = kernel_fs_open("debugfs");
  if (root < 0)
    return;
  for (int i = 0; i < out->info.vcpu_count; i++) {
    char path[96];
    snprintf(path, sizeof(path), "kvm/%d-%d/vcpu%d/pid", out->info.pid,
             out->info.vm_fd, out->vcpu[i].id);
    int64_t tid = kernel_fs_number(root, path);
    if (tid > 0 && tid <= INT32_MAX &&
        discover_is_user_thread(out->info.pid, (pid_t)tid))
      out->vcpu[i].tid = (int32_t)tid;
  }
}

/* What a sleeping thread's system call is, and its first two arguments; false
 * for one that does not sleep. */
static bool read_syscall(pid_t pid, pid_t tid, long *number,
                         unsigned long *first, unsigned long *second) {
  char path[64], text[256];
  snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
  scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
  if (length <= 0)
    return false;
  text[length] = 0;
  return sscanf(text, "%ld %lx %lx", number, first, second) == 3;
}

bool discover_waits(pid_t pid, pid_t tid) {
  long number;
  unsigned long first, second;
  return read_syscall(pid, tid, &number, &first, &second) &&
         number == SYS_futex && discover_is_asleep(pid, tid);
}

/* A thread that sleeps in the kernel shows its system call: KVM_RUN on fd. */
void discover_thread(struct discovery *out, pid_t tid) {
  long number;
  unsigned long descriptor, request;
  if (!read_syscall(out->info.pid, tid, &number, &descriptor, &request) ||
      number != SYS_ioctl || request != KVM_RUN)
    return;
  for (int i = 0; i < out->info.vcpu_count; i++) {
    struct kvmgdb_agent_found_vcpu *vcpu = &out->vcpu[i];
    if (!vcpu->tid && (vcpu->fd == (int)descriptor ||
                       same_file(out->info.pid, vcpu->fd, (int)descriptor)))
      vcpu->tid = tid;
  }
}

static void look_at_threads(struct discovery *out) {
  pid_t pid = out->info.pid;
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/task", pid);
  scoped_directory directory = opendir(path);
  struct dirent *entry;
  while (directory && (entry = readdir(directory))) {
    pid_t tid = atoi(entry->d_name);
    if (tid <= 0)
      continue;
    long tracer = status_value(pid, tid, "TracerPid");
    if (tracer > 0)
      out->info.tracer = (int32_t)tracer;
    if (discover_seccomp(pid, tid) == 2)
      out->info.seccomp = 1;
    if (discover_is_user_thread(pid, tid))
      discover_thread(out, tid);
  }
  for (int i = 0; i < out->info.vcpu_count; i++)
    if (out->vcpu[i].tid)
      out->vcpu[i].seccomp = discover_seccomp(pid, out->vcpu[i].tid);
}

enum kvmgdb_agent_status discover(pid_t pid, struct discovery *out,
                                  struct agent_error *error) {
  *out = (struct discovery){.info = {.pid = pid, .vm_fd = -1}};
  struct kvmgdb_agent_discovery *info = &out->info;
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/exe", pid);
  ssize_t length = readlink(path, info->exe, sizeof(info->exe) - 1);
  info->exe[length > 0 ? length : 0] = 0;
  enum kvmgdb_agent_status status = find_descriptors(pid, out, error);
  if (status)
    return status;
  info->bits = program_bits(pid);
  info->other_pid_namespace = in_other_pid_namespace(pid);
  qsort(out->vcpu, (size_t)info->vcpu_count, sizeof(out->vcpu[0]), by_id);
  find_kvm_run(pid, out);
  threads_from_debugfs(out);
  look_at_threads(out);
  if (!info->vm_count)
    return agent_fail(error, KVMGDB_AGENT_NO_VM, 0, -1, 0);
  if (info->vm_count > 1)
    return agent_fail(error, KVMGDB_AGENT_SEVERAL_VMS, 0, -1, info->vm_count);
  if (!info->vcpu_count)
    return agent_fail(error, KVMGDB_AGENT_NO_VCPU, 0, -1, 0);
  if (info->bits != 64)
    return agent_fail(error, KVMGDB_AGENT_NOT_64BIT, 0, -1, 0);
  if (info->confidential)
    return agent_fail(error, KVMGDB_AGENT_CONFIDENTIAL, 0, -1, 0);
  if (info->tracer)
    return agent_fail(error, KVMGDB_AGENT_TRACED, 0, -1, info->tracer);
  return KVMGDB_AGENT_OK;
}
