#include "harness.h"
#include "options.h"

#include <getopt.h>
#include <string.h>

#define PARSE(...)                                                             \
  parse((char *[]){"kvmgdb-vmm", __VA_ARGS__, NULL}, &options, &error)

static bool parse(char **argv, struct options *options,
                  struct vmm_error *error) {
  int argc = 0;
  while (argv[argc])
    argc++;
  optind = 0;
  opterr = 0;
  return options_parse(argc, argv, options, error);
}

TEST(options, memory_has_units) {
  struct options options;
  struct vmm_error error;
  CHECK(PARSE("-m", "64M", "k"));
  CHECK_EQUAL(options.memory, 64 << 20);
  CHECK(PARSE("-m", "5G", "k"));
  CHECK_EQUAL(options.memory, 5ULL << 30);
  CHECK(PARSE("-m", "128", "k"));
  CHECK_EQUAL(options.memory, 128 << 20);
}

TEST(options, bad_values_are_refused_with_their_reason) {
  static const struct {
    char *option, *value;
    const char *words;
  } bad[] = {
      {"-m", "", "is no size"},
      {"-m", "-1M", "is no size"},
      {"-m", "5T", "is no size"},
      {"-m", "99999999999999999999", "is no size"},
      {"-m", "17592186044416G", "is no size"},
      {"-m", "64MM", "is no size"},
      {"-c", "0", "no number of vCPUs"},
      {"-c", "two", "no number of vCPUs"},
      {"-c", "70000", "no number of vCPUs"},
      {"--flat", "here", "is no address"},
      {"--protocol", "uefi", "there are auto"},
      {"--protocol", "flat", "raw code: --flat"},
      {"--serial", "tcp", "there are stdio"},
  };
  struct options options;
  struct vmm_error error;
  for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    CHECK(!PARSE(bad[i].option, bad[i].value, "k"));
    if (!strstr(error.text, bad[i].words))
      harness_fail(__FILE__, __LINE__, "%s %s: %s", bad[i].option, bad[i].value,
                   error.text);
  }
}

TEST(options, one_kernel_is_needed_and_paused_needs_control) {
  struct options options;
  struct vmm_error error;
  CHECK(!PARSE("-m", "64M"));
  CHECK(!PARSE("one", "two"));
  CHECK(!PARSE("--nonsense", "k"));
  CHECK(!PARSE("-S", "k"));
  CHECK(strstr(error.text, "--control"));
  CHECK(PARSE("-S", "--control", "/run/x", "k"));
  CHECK(options.paused);
}
