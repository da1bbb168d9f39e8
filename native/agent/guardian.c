#include "guardian.h"
#include "attach.h"
#include "cleanup.h"
#include "tracee.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char farewell = 'q';

/* The pipe's other end closes when the agent ends, however it ends. */
static bool agent_said_farewell(int pipe_fd) {
  char word;
  ssize_t length;
  do {
    length = read(pipe_fd, &word, 1);
  } while (length < 0 && errno == EINTR);
  return length == 1 && word == farewell;
}

static void __attribute__((noreturn))
watch_over(struct session *session, int pipe_fd) {
  setsid(); /* what ends the agent's terminal or job must not end this one */
  prctl(PR_SET_NAME, "kvmgdb-guardian");
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  if (!agent_said_farewell(pipe_fd))
    session_recover(session);
  _exit(0);
}

enum kvmgdb_agent_status guardian_start(struct session *session, int control,
                                        struct agent_error *error) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC))
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  int old_pipe = session->guardian_pipe;
  pid_t pid = fork();
  if (pid < 0) {
    int reason = errno;
    close(ends[0]);
    close(ends[1]);
    return agent_fail(error, KVMGDB_AGENT_HOST, reason, -1, 0);
  }
  if (!pid) {
    close(ends[1]);
    close(control);
    if (old_pipe >= 0)
      close(old_pipe);
    session->guardian_pipe = -1;
    watch_over(session, ends[0]);
  }
  close(ends[0]);
  if (old_pipe >= 0)
    close(old_pipe);
  session->guardian = pid;
  session->guardian_pipe = ends[1];
  return KVMGDB_AGENT_OK;
}

enum kvmgdb_agent_status guardian_renew(struct session *session, int control,
                                        struct agent_error *error) {
  pid_t old = session->guardian;
  scoped_fd old_pipe = fcntl(session->guardian_pipe, F_DUPFD_CLOEXEC, 0);
  if (old_pipe < 0)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, 0);
  enum kvmgdb_agent_status status = guardian_start(session, control, error);
  if (status)
    return status;
  ssize_t written = write(old_pipe, &farewell, 1);
  (void)written; /* it may have been killed */
  if (old)
    waitpid(old, NULL, 0);
  return KVMGDB_AGENT_OK;
}

void guardian_end(struct session *session) {
  if (session->guardian_pipe < 0)
    return;
  ssize_t written = write(session->guardian_pipe, &farewell, 1);
  (void)written; /* it may have been killed */
  close(session->guardian_pipe);
  session->guardian_pipe = -1;
  if (session->guardian)
    waitpid(session->guardian, NULL, 0);
  session->guardian = 0;
}
