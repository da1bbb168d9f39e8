#include "priority.h"
#include <sched.h>
#include <sys/resource.h>

/* What we have because of a vCPU's thread; 0 while none is real-time. */
static int needed;

void priority_come_before(pid_t tid) {
  struct sched_param theirs;
  int policy = sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK;
  if ((policy != SCHED_FIFO && policy != SCHED_RR) ||
      sched_getparam(tid, &theirs))
    return;
  int highest = sched_get_priority_max(SCHED_FIFO);
  struct sched_param ours = {.sched_priority = theirs.sched_priority + 1};
  if (ours.sched_priority > highest)
    ours.sched_priority = highest;
  if (ours.sched_priority > needed && !sched_setscheduler(0, SCHED_FIFO, &ours))
    needed = ours.sched_priority;
}

void priority_be_prompt(bool prompt) {
  if (needed)
    return;
  struct sched_param parameters = {.sched_priority = prompt ? 1 : 0};
  int policy = (prompt ? SCHED_RR : SCHED_OTHER) | SCHED_RESET_ON_FORK;
  if (sched_setscheduler(0, policy, &parameters) && prompt)
    setpriority(PRIO_PROCESS, 0, -19);
  if (!prompt)
    setpriority(PRIO_PROCESS, 0, 0);
}
