#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_DEFAULT (512ULL << 20)

const char options_help[] =
    "usage: kvmgdb-vmm [options] KERNEL\n"
    "A small virtual machine on /dev/kvm.\n"
    "\n"
    "KERNEL is an ELF with a PVH note, a vmlinux, a bzImage or a multiboot 1\n"
    "image, told apart by its contents.\n"
    "\n"
    "  -m, --memory SIZE    64M (at least) to 512G; default 512M\n"
    "  -c, --cpus N         vCPUs; default 1\n"
    "  -i, --initrd FILE    initial RAM disk, or multiboot or PVH module\n"
    "  -a, --append TEXT    kernel command line\n"
    "      --protocol NAME  pvh, linux, bzimage or multiboot, where a file\n"
    "                       offers several\n"
    "      --flat ADDRESS   KERNEL is raw code: load it at ADDRESS (0x7c00 is\n"
    "                       usual) and start it there in 16-bit real mode\n"
    "      --serial WHERE   stdio (default), pty (its name is printed), none\n"
    "      --control WHERE  control socket: a path, or fd:N for an inherited\n"
    "                       connected one; commands cont, stop, reset, "
    "status,\n"
    "                       quit\n"
    "  -S, --paused         wait before the first instruction for cont; needs\n"
    "                       --control\n"
    "      --exit-on-fault  end when the guest triple-faults or KVM gives up,\n"
    "                       instead of keeping the machine for a debugger\n"
    "  -h, --help\n"
    "\n"
    "On a terminal Ctrl-A x ends the machine.\n"
    "Exit status: 0 ended by command or powered off, 2 wrong usage, 4 could\n"
    "not start or go on, 6 fault with --exit-on-fault; odd: the guest wrote v\n"
    "to the exit port 0xf4, and the status is (v << 1 | 1) & 255.\n";

enum {
  OPTION_PROTOCOL = 256,
  OPTION_FLAT,
  OPTION_SERIAL,
  OPTION_CONTROL,
  OPTION_EXIT_ON_FAULT
};

static const struct option long_options[] = {
    {"memory", required_argument, NULL, 'm'},
    {"cpus", required_argument, NULL, 'c'},
    {"initrd", required_argument, NULL, 'i'},
    {"append", required_argument, NULL, 'a'},
    {"protocol", required_argument, NULL, OPTION_PROTOCOL},
    {"flat", required_argument, NULL, OPTION_FLAT},
    {"serial", required_argument, NULL, OPTION_SERIAL},
    {"control", required_argument, NULL, OPTION_CONTROL},
    {"paused", no_argument, NULL, 'S'},
    {"exit-on-fault", no_argument, NULL, OPTION_EXIT_ON_FAULT},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* A number without a sign; *end is what follows it. */
static bool parse_number(const char *text, uint64_t *value, char **end) {
  if (*text < '0' || *text > '9')
    return false;
  errno = 0;
  *value = strtoull(text, end, 0);
  return errno == 0;
}

static bool parse_memory(const char *text, uint64_t *bytes,
                         struct vmm_error *error) {
  uint64_t value;
  char *end;
  unsigned shift = 20; /* a bare number is MiB */
  if (!parse_number(text, &value, &end))
    return vmm_fail(error, "--memory %s is no size; write it as 512M or 4G",
                    text);
  if (*end == 'G' || *end == 'g')
    shift = 30;
  if (strchr("GgMm", *end) && *end)
    end++;
  if (*end || value > UINT64_MAX >> shift)
    return vmm_fail(error, "--memory %s is no size; write it as 512M or 4G",
                    text);
  *bytes = value << shift;
  return true;
}

static bool parse_serial(const char *text, enum console_kind *kind,
                         struct vmm_error *error) {
  if (strcmp(text, "stdio") == 0)
    *kind = CONSOLE_STDIO;
  else if (strcmp(text, "pty") == 0)
    *kind = CONSOLE_PTY;
  else if (strcmp(text, "none") == 0)
    *kind = CONSOLE_NONE;
  else
    return vmm_fail(error, "--serial %s; there are stdio, pty and none", text);
  return true;
}

static bool parse_one(int option, struct options *options,
                      struct vmm_error *error) {
  uint64_t value;
  char *end;
  switch (option) {
  case 'm':
    return parse_memory(optarg, &options->memory, error);
  case 'c':
    if (!parse_number(optarg, &value, &end) || *end || value == 0 ||
        value > UINT16_MAX)
      return vmm_fail(error, "--cpus %s is no number of vCPUs", optarg);
    options->vcpus = (unsigned)value;
    return true;
  case 'i':
    options->initrd = optarg;
    return true;
  case 'a':
    options->command_line = optarg;
    return true;
  case OPTION_PROTOCOL:
    if (!boot_protocol_parse(optarg, &options->protocol) ||
        options->protocol == BOOT_FLAT)
      return vmm_fail(error,
                      "--protocol %s; there are auto, pvh, linux, bzimage and "
                      "multiboot (raw code: --flat)",
                      optarg);
    return true;
  case OPTION_FLAT:
    if (!parse_number(optarg, &options->flat_address, &end) || *end)
      return vmm_fail(error, "--flat %s is no address", optarg);
    options->protocol = BOOT_FLAT;
    return true;
  case OPTION_SERIAL:
    return parse_serial(optarg, &options->serial, error);
  case OPTION_CONTROL:
    options->control = optarg;
    return true;
  case 'S':
    options->paused = true;
    return true;
  case OPTION_EXIT_ON_FAULT:
    options->exit_on_fault = true;
    return true;
  default:
    return vmm_fail(error, "see kvmgdb-vmm --help");
  }
}

bool options_parse(int argc, char **argv, struct options *options,
                   struct vmm_error *error) {
  *options = (struct options){
      .command_line = "", .memory = MEMORY_DEFAULT, .vcpus = 1};
  int option;
  while ((option = getopt_long(argc, argv, "m:c:i:a:Sh", long_options, NULL)) !=
         -1) {
    if (option == 'h') {
      options->help = true;
      return true;
    }
    if (!parse_one(option, options, error))
      return false;
  }
  if (optind + 1 != argc)
    return vmm_fail(error, "give one kernel; see kvmgdb-vmm --help");
  options->kernel = argv[optind];
  if (options->paused && !options->control)
    return vmm_fail(error, "--paused needs --control: something has to be "
                           "able to say cont");
  return true;
}
