/* kvmgdb-agent PID FD: attaches to the KVM VMM `PID` for the client that
 * speaks on the socket FD (see kvmgdb/agent.h). */
#include "protocol.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>

static int number(const char *text) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  return *text && !*end && !errno && value >= 0 && value <= INT_MAX ? (int)value
                                                                    : -1;
}

int main(int argc, char **argv) {
  int pid = argc == 3 ? number(argv[1]) : -1;
  int control = argc == 3 ? number(argv[2]) : -1;
  if (pid <= 0 || control < 0 || fcntl(control, F_SETFD, FD_CLOEXEC))
    return 2;
  /* The client's end closes when it is to end; a signal meant for the client
   * (Ctrl-C in its terminal) must not end it in the middle of a stop. */
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  protocol_serve(pid, control);
  return 0;
}
