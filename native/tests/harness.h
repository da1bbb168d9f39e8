/* A test is a function; a check that fails says what it saw and ends it. */
#ifndef KVMGDB_TESTS_HARNESS_H
#define KVMGDB_TESTS_HARNESS_H

#include <stdint.h>
#include <stdio.h>

struct test {
  const char *suite;
  const char *name;
  void (*run)(void);
  struct test *next;
};

void harness_register(struct test *test);

/* Ends the running test as failed. */
_Noreturn void harness_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends the running test as skipped; KVMGDB_REQUIRE=all makes that a failure. */
_Noreturn void harness_skip(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

#define TEST(suite_, name_)                                                    \
  static void name_(void);                                                     \
  __attribute__((constructor)) static void register_##name_(void) {            \
    static struct test test = {                                                \
        .suite = #suite_, .name = #name_, .run = name_};                       \
    harness_register(&test);                                                   \
  }                                                                            \
  static void name_(void)

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition))                                                          \
      harness_fail(__FILE__, __LINE__, "not so: %s", #condition);              \
  } while (0)

#define CHECK_EQUAL(actual, expected)                                          \
  do {                                                                         \
    uint64_t actual_ = (uint64_t)(actual), expected_ = (uint64_t)(expected);   \
    if (actual_ != expected_)                                                  \
      harness_fail(__FILE__, __LINE__, "%s is 0x%llx, not %s = 0x%llx",        \
                   #actual, (unsigned long long)actual_, #expected,            \
                   (unsigned long long)expected_);                             \
  } while (0)

#endif
