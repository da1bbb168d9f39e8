#include "perf.h"
#include "cleanup.h"
#include "kernel_fs.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

/*
 * SIGSTOP, because it cannot be blocked, and because without a tracer it
 * leaves the thread stopped with the exit intact. The number is KVM_EXIT_DEBUG;
 * KVM_EXIT_INTERNAL_ERROR (17) is what a host that emulates guest code makes
 * of an `int3`.
 */
static const char filter[] = "reason == 4 || reason == 17";

static int open_event(int64_t tracepoint, pid_t tid) {
  struct perf_event_attr attributes = {
      .type = PERF_TYPE_TRACEPOINT,
      .size = sizeof(attributes),
      .config = (uint64_t)tracepoint,
      .sample_period = 1,
      .wakeup_events = 1,
      .disabled = 1,
  };
  scoped_fd fd = (int)syscall(SYS_perf_event_open, &attributes, tid, -1, -1,
                              PERF_FLAG_FD_CLOEXEC);
  struct f_owner_ex owner = {F_OWNER_TID, tid};
  if (fd < 0 || ioctl(fd, PERF_EVENT_IOC_SET_FILTER, filter) ||
      fcntl(fd, F_SETSIG, SIGSTOP) || fcntl(fd, F_SETOWN_EX, &owner) ||
      fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK))
    return -1;
  int kept = fd;
  fd = -1;
  return kept;
}

bool perf_open_vcpu(struct vcpu *vcpu) {
  scoped_fd root = kernel_fs_open("tracefs");
  int64_t tracepoint =
      root < 0 ? -ENOENT
               : kernel_fs_number(root, "events/kvm/kvm_userspace_exit/id");
  vcpu->perf_fd = tracepoint < 0 ? -1 : open_event(tracepoint, vcpu->tid);
  return vcpu->perf_fd >= 0;
}

bool perf_open(struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++)
    if (!perf_open_vcpu(&session->vcpu[i])) {
      perf_close(session);
      return false;
    }
  return true;
}

void perf_close(struct session *session) {
  for (int i = 0; i < session->vcpu_count; i++) {
    close_descriptor(&session->vcpu[i].perf_fd);
    session->vcpu[i].perf_fd = -1;
  }
}

void perf_enable(struct vcpu *vcpu, bool enable) {
  ioctl(vcpu->perf_fd, enable ? PERF_EVENT_IOC_ENABLE : PERF_EVENT_IOC_DISABLE,
        0);
}
