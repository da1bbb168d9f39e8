// Makes the kernel generate code, and lists it where /proc/kallsyms does:
// programs and a trampoline of BPF, a trampoline of ftrace, and a probed
// instruction. All of it is in the way of what the guest's workers do, so that
// they run through it.
//
// Included by probe.c, which has the calls that this needs.

#include <linux/bpf.h>
#include <linux/btf.h>

#define TRACED "__x64_sys_getppid"
// As they are called since 6.15, and were before.
static const char *const hooked[] = {"anon_pipe_write", "pipe_write"};
// Nobody calls it: what an optimized probe runs through has no unwind table,
// for the kernel itself either.
static const char *const probed[] = {"p:probed vfs_statfs+5\n",
                                     "p:probed vfs_statfs+9\n"};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int same(const char *a, const char *b) {
  while (*a && *a == *b) {
    a++;
    b++;
  }
  return *a == *b;
}

static long write_file(const char *path, const char *text) {
  long fd = call(__NR_open, (long)path, O_WRONLY | O_APPEND, 0, 0);
  long result =
      fd < 0 ? fd : call(__NR_write, fd, (long)text, (long)length(text), 0);
  if (fd >= 0)
    call(__NR_close, fd, 0, 0, 0);
  return result;
}

static unsigned long type_size(const struct btf_type *type) {
  unsigned long count = BTF_INFO_VLEN(type->info);
  switch (BTF_INFO_KIND(type->info)) {
  case BTF_KIND_INT:
  case BTF_KIND_VAR:
  case BTF_KIND_DECL_TAG:
    return sizeof(*type) + 4;
  case BTF_KIND_ARRAY:
    return sizeof(*type) + sizeof(struct btf_array);
  case BTF_KIND_STRUCT:
  case BTF_KIND_UNION:
    return sizeof(*type) + count * sizeof(struct btf_member);
  case BTF_KIND_ENUM:
  case BTF_KIND_FUNC_PROTO:
    return sizeof(*type) + count * 8;
  case BTF_KIND_ENUM64:
  case BTF_KIND_DATASEC:
    return sizeof(*type) + count * 12;
  default:
    return sizeof(*type);
  }
}

// The ID of a function's type, or 0.
static unsigned int function_type(const char *name) {
  long size = read_file("/sys/kernel/btf/vmlinux");
  const struct btf_header *header = (const void *)buffer;
  if (size < (long)sizeof(*header))
    return 0;
  const char *at = buffer + header->hdr_len + header->type_off;
  const char *end = at + header->type_len;
  const char *names = buffer + header->hdr_len + header->str_off;
  for (unsigned int id = 1; at < end; id++) {
    const struct btf_type *type = (const void *)at;
    if (BTF_INFO_KIND(type->info) == BTF_KIND_FUNC &&
        same(names + type->name_off, name))
      return id;
    at += type_size(type);
  }
  return 0;
}

// A program that returns 0. Its descriptor, which is inherited by children.
static long load_program(const char *name, int type, int attach_type,
                         unsigned int function) {
  static const struct bpf_insn code[] = {
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0},
      {.code = BPF_JMP | BPF_EXIT}};
  static union bpf_attr attributes;
  attributes =
      (union bpf_attr){.prog_type = (unsigned int)type,
                       .insn_cnt = 2,
                       .insns = (unsigned long)code,
                       .license = (unsigned long)"GPL",
                       .expected_attach_type = (unsigned int)attach_type,
                       .attach_btf_id = function};
  for (int i = 0; name[i]; i++)
    attributes.prog_name[i] = name[i];
  return call(__NR_bpf, BPF_PROG_LOAD, (long)&attributes, sizeof(attributes),
              0);
}

static long hook(long program) {
  static union bpf_attr attributes;
  attributes =
      (union bpf_attr){.raw_tracepoint = {.prog_fd = (unsigned int)program}};
  return call(__NR_bpf, BPF_RAW_TRACEPOINT_OPEN, (long)&attributes,
              sizeof(attributes), 0);
}

// Behind the call that every function begins with: where that is depends on
// whether there is an endbr64 before it.
static void probe_instruction(void) {
  for (unsigned long i = 0; i < COUNT(probed); i++)
    if (write_file("/tracing/kprobe_events", probed[i]) > 0)
      break;
  write_file("/tracing/events/kprobes/probed/enable", "1");
}

static void hook_function(void) {
  for (unsigned long i = 0; i < COUNT(hooked); i++) {
    unsigned int function = function_type(hooked[i]);
    if (!function)
      continue;
    hook(load_program("hooked", BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY,
                      function));
    return;
  }
}

static void generate_code(void) {
  write_file("/proc/sys/net/core/bpf_jit_enable", "1");
  write_file("/proc/sys/net/core/bpf_jit_kallsyms", "1");
  load_program("filter", BPF_PROG_TYPE_SOCKET_FILTER, 0, 0);
  hook_function();
  write_file("/tracing/set_ftrace_filter", TRACED);
  write_file("/tracing/current_tracer", "function");
  probe_instruction();
}
