/*
 * run_tests [suite]: every test, or those of one suite. Each has a process of
 * its own: a crash, a leak (which the sanitizer reports at exit) or a hang
 * fails that test and no other.
 */
#include "harness.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS 60
#define STATUS_FAILED 1
#define STATUS_SKIPPED 77

static struct test *first_test;

void harness_register(struct test *test) {
  test->next = first_test;
  first_test = test;
}

/* Ends the test's process without its cleanup, or a look for leaks. */
static _Noreturn void end(int status) {
  printf("\n");
  fflush(stdout);
  _exit(status);
}

void harness_fail(const char *file, int line, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("%s:%d: ", file, line);
  vprintf(format, arguments);
  va_end(arguments);
  end(STATUS_FAILED);
}

void harness_skip(const char *format, ...) {
  const char *require = getenv("KVMGDB_REQUIRE");
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  end(require && strstr(require, "all") ? STATUS_FAILED : STATUS_SKIPPED);
}

static int run(const struct test *test) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) {
    alarm(SECONDS);
    test->run();
    exit(0);
  }
  int status;
  if (pid < 0 || waitpid(pid, &status, 0) != pid)
    return STATUS_FAILED;
  if (WIFSIGNALED(status))
    printf("ended by signal %d\n", WTERMSIG(status));
  return WIFEXITED(status) ? WEXITSTATUS(status) : STATUS_FAILED;
}

int main(int count, char **arguments) {
  int passed = 0, failed = 0;
  for (const struct test *test = first_test; test; test = test->next) {
    if (count > 1 && strcmp(arguments[1], test->suite) != 0)
      continue;
    int status = run(test);
    const char *word = status == 0                ? "ok"
                       : status == STATUS_SKIPPED ? "skipped"
                                                  : "FAILED";
    printf("%-7s %s: %s\n", word, test->suite, test->name);
    passed += status == 0;
    failed += status != 0 && status != STATUS_SKIPPED;
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}
