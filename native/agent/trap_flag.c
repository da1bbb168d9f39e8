#include "trap_flag.h"
#include <string.h>

/* SDM volume 3, 2.5 and 2.2.1. */
static const uint64_t cr0_pe = 1, efer_lma = 1 << 10;

/* SDM volume 1, 3.4.3: CF, PF, AF, ZF, SF, OF, and RF, which is set in what a
 * fault saves. */
static const uint64_t may_differ = 0x8d5 | 1 << 16 | TRAP_FLAG;

enum {
  MAX_INSTRUCTION = 15, /* bytes */
  /* SDM volume 3, 6.14.2: rip, cs, rflags, rsp, ss; without a change of
   * privilege only three of them outside long mode. */
  FRAME_WORDS = 5,
  SHORT_FRAME_WORDS = 3,
  /* What lies below the frame when the step ends: an error code, and what the
   * handler's first instruction has pushed. */
  MAX_BELOW = 4,
  OPCODE_PUSHF = 0x9c,
};

struct search {
  const struct step_start *from;
  const struct kvmgdb_agent_regs *regs;
  const struct kvmgdb_agent_sregs *sregs;
  trap_flag_reader *reader;
  void *context;
  unsigned width; /* bytes that a push takes */
};

static uint64_t mask_of(unsigned width) {
  return width == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * width) - 1;
}

/* Whether `saved` is the RFLAGS that the step began with, and the flag. */
static bool is_saved(const struct step_start *from, uint64_t saved,
                     unsigned width) {
  uint64_t compared = mask_of(width) & ~may_differ;
  return (saved & TRAP_FLAG) && !((saved ^ from->rflags) & compared);
}

static bool read_word(const struct search *search, uint64_t gva, unsigned width,
                      uint64_t *word) {
  *word = 0;
  return search->reader(search->context, gva, word, width);
}

static uint64_t stack_base(const struct search *search) {
  return search->width == 8 ? 0 : search->sregs->ss.base;
}

static bool is_frame(const struct search *search, uint64_t rsp) {
  const struct step_start *from = search->from;
  unsigned width = search->width;
  uint64_t word[FRAME_WORDS], mask = mask_of(width);
  uint64_t place = stack_base(search) + rsp;
  for (int i = 0; i < SHORT_FRAME_WORDS; i++)
    if (!read_word(search, place + (uint64_t)i * width, width, &word[i]))
      return false;
  if (((word[0] - from->rip) & mask) > MAX_INSTRUCTION ||
      (uint16_t)word[1] != from->cs || !is_saved(from, word[2], width))
    return false;
  bool same_stack =
      ((rsp + SHORT_FRAME_WORDS * width) & mask) == (from->rsp & mask);
  if (width != 8 && same_stack)
    return true;
  for (int i = SHORT_FRAME_WORDS; i < FRAME_WORDS; i++)
    if (!read_word(search, place + (uint64_t)i * width, width, &word[i]))
      return false;
  return width != 2 && word[3] == (from->rsp & mask) &&
         (uint16_t)word[4] == from->ss;
}

/* Whether the step left its place and its stack as a delivery does. */
static bool may_be_delivered(const struct search *search) {
  const struct step_start *from = search->from;
  uint64_t grown = from->rsp - search->regs->rsp;
  uint64_t ordinary = 2 * search->width; /* a call, a push, a ret, a pop */
  return search->regs->rip - from->rip > MAX_INSTRUCTION &&
         grown + ordinary > 2 * ordinary;
}

static bool is_pushf(const struct search *search) {
  uint64_t grown = search->from->rsp - search->regs->rsp;
  uint64_t length = search->regs->rip - search->from->rip, saved;
  uint8_t opcode;
  return length > 0 && length <= MAX_INSTRUCTION &&
         (grown == 8 || grown == 4 || grown == 2) &&
         search->reader(search->context,
                        (search->width == 8 ? 0 : search->sregs->cs.base) +
                            search->regs->rip - 1,
                        &opcode, 1) &&
         opcode == OPCODE_PUSHF &&
         read_word(search, stack_base(search) + search->regs->rsp,
                   (unsigned)grown, &saved) &&
         is_saved(search->from, saved, (unsigned)grown);
}

/* SDM volume 2, SYSCALL: RIP goes to RCX and RFLAGS to R11. */
static bool is_syscall(const struct search *search) {
  static const uint8_t instruction[] = {0x0f, 0x05};
  uint64_t rip = search->from->rip;
  uint8_t code[sizeof(instruction)];
  return search->width == 8 && search->regs->rip != search->regs->rcx &&
         search->regs->rcx == rip + sizeof(code) &&
         is_saved(search->from, search->regs->r11, 8) &&
         search->reader(search->context, rip, code, sizeof(code)) &&
         !memcmp(code, instruction, sizeof(code));
}

struct trap_flag_place trap_flag_find(const struct step_start *from,
                                      const struct kvmgdb_agent_regs *regs,
                                      const struct kvmgdb_agent_sregs *sregs,
                                      trap_flag_reader *reader, void *context) {
  struct search search = {
      .from = from,
      .regs = regs,
      .sregs = sregs,
      .reader = reader,
      .context = context,
      .width = sregs->efer & efer_lma ? 8
               : sregs->cr0 & cr0_pe  ? 4
                                      : 2,
  };
  if (is_syscall(&search))
    return (struct trap_flag_place){.kind = TRAP_FLAG_IN_R11};
  if (is_pushf(&search))
    return (struct trap_flag_place){TRAP_FLAG_IN_MEMORY,
                                    stack_base(&search) + regs->rsp + 1};
  for (uint64_t below = 0; may_be_delivered(&search) && below <= MAX_BELOW;
       below++) {
    uint64_t rsp = regs->rsp + below * search.width;
    if (is_frame(&search, rsp))
      return (struct trap_flag_place){TRAP_FLAG_IN_MEMORY,
                                      stack_base(&search) + rsp +
                                          2 * search.width + 1};
  }
  return (struct trap_flag_place){.kind = TRAP_FLAG_NOWHERE};
}
