#include "kernel_memory.h"
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PIECE = 64, WORDS = PIECE / 8 };

/* What the program gets and leaves behind. */
struct exchange {
  uint64_t address; /* 0: asks for the current task */
  int64_t result;
  uint64_t data[WORDS];
};

#define INSTRUCTION(operation, destination, source, offset, immediate)         \
  ((struct bpf_insn){.code = (operation),                                      \
                     .dst_reg = (destination),                                 \
                     .src_reg = (source),                                      \
                     .off = (offset),                                          \
                     .imm = (immediate)})
#define LOAD(destination, source, offset)                                      \
  INSTRUCTION(BPF_LDX | BPF_MEM | BPF_DW, destination, source, offset, 0)
#define STORE(destination, source, offset)                                     \
  INSTRUCTION(BPF_STX | BPF_MEM | BPF_DW, destination, source, offset, 0)
#define SET(destination, immediate)                                            \
  INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_K, destination, 0, 0, immediate)
#define COPY(destination, source)                                              \
  INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_X, destination, source, 0, 0)
#define CALL(helper) INSTRUCTION(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define RETURN INSTRUCTION(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

int kernel_memory_open(void) {
  struct bpf_insn program[16 + 2 * WORDS];
  int size = 0;
  program[size++] = COPY(BPF_REG_6, BPF_REG_1);
  program[size++] =
      LOAD(BPF_REG_3, BPF_REG_6, offsetof(struct exchange, address));
  program[size++] = INSTRUCTION(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, 4, 0);
  program[size++] = CALL(BPF_FUNC_get_current_task);
  program[size++] =
      STORE(BPF_REG_6, BPF_REG_0, offsetof(struct exchange, data));
  program[size++] = SET(BPF_REG_0, 0);
  program[size++] = RETURN;
  program[size++] = COPY(BPF_REG_1, BPF_REG_10);
  program[size++] =
      INSTRUCTION(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, -PIECE);
  program[size++] = SET(BPF_REG_2, PIECE);
  program[size++] = CALL(BPF_FUNC_probe_read_kernel);
  program[size++] =
      STORE(BPF_REG_6, BPF_REG_0, offsetof(struct exchange, result));
  for (int i = 0; i < WORDS; i++) {
    program[size++] = LOAD(BPF_REG_1, BPF_REG_10, (int16_t)(8 * i - PIECE));
    program[size++] =
        STORE(BPF_REG_6, BPF_REG_1,
              (int16_t)(offsetof(struct exchange, data) + 8 * (size_t)i));
  }
  program[size++] = SET(BPF_REG_0, 0);
  program[size++] = RETURN;
  union bpf_attr attributes = {
      .prog_type = BPF_PROG_TYPE_SYSCALL,
      .insns = (uint64_t)(uintptr_t)program,
      .insn_cnt = (uint32_t)size,
      /* The helpers are for programs that the kernel's licence admits. */
      .license = (uint64_t)(uintptr_t) "Dual MIT/GPL",
      .prog_flags = BPF_F_SLEEPABLE,
  };
  int fd =
      (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof(attributes));
  return fd >= 0 ? fd : -errno;
}

static bool run(int reader, struct exchange *exchange) {
  union bpf_attr attributes = {
      .test = {.prog_fd = (uint32_t)reader,
               .ctx_in = (uint64_t)(uintptr_t)exchange,
               .ctx_size_in = sizeof(*exchange)},
  };
  return !syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof(attributes));
}

bool kernel_memory_read(int reader, uint64_t address, void *buffer,
                        size_t length) {
  for (size_t done = 0; done < length; done += PIECE) {
    struct exchange exchange = {.address = address + done};
    if (!exchange.address || !run(reader, &exchange) || exchange.result)
      return false;
    size_t left = length - done;
    memcpy((uint8_t *)buffer + done, exchange.data,
           left < PIECE ? left : PIECE);
  }
  return true;
}

uint64_t kernel_memory_pointer(int reader, uint64_t address) {
  uint64_t value = 0;
  return kernel_memory_read(reader, address, &value, sizeof(value)) ? value : 0;
}

uint64_t kernel_memory_current_task(int reader) {
  struct exchange exchange = {0};
  return run(reader, &exchange) ? exchange.data[0] : 0;
}
