/*
 * Rows of .debug_frame (DWARF 4, section 6.4) for rules of ORC. What a rule
 * does not say of a register is not known to be as it was: it is undefined.
 */
#include "dwarf.h"
#include "frames.h"

#define DATA_ALIGNMENT (-8)
#define ENTRY_ALIGNMENT 8

/* struct pt_regs (arch/x86/include/asm/ptrace.h), and its last part, which is
 * what the processor itself pushes. */
#define REGS_SIZE 168
#define INTERRUPT_SIZE 40
static const struct {
  uint8_t reg;
  uint8_t offset;
} regs_layout[] = {{DW_R15, 0},  {DW_R14, 8},   {DW_R13, 16},  {DW_R12, 24},
                   {DW_RBP, 32}, {DW_RBX, 40},  {DW_R11, 48},  {DW_R10, 56},
                   {DW_R9, 64},  {DW_R8, 72},   {DW_RAX, 80},  {DW_RCX, 88},
                   {DW_RDX, 96}, {DW_RSI, 104}, {DW_RDI, 112}, {DW_RIP, 128},
                   {DW_RSP, 152}};
#define REGS_RBP 32
#define INTERRUPT_RIP 0
#define INTERRUPT_CS 8
#define INTERRUPT_RSP 24

/* arch/x86/include/asm/segment.h */
#define KERNEL_CS 0x10
#define USER32_CS 0x23
#define USER_CS 0x33

enum frame_class frame_class_of(const struct orc_rule *rule) {
  if (rule->sp_register == ORC_UNDEFINED || rule->sp_register >= ORC_UNKNOWN ||
      rule->sp_register == ORC_PREV_SP)
    return FRAME_OUTER;
  switch (rule->type) {
  case ORC_TYPE_CALL:
    return FRAME_CALL;
  case ORC_TYPE_REGS:
    return FRAME_REGS;
  case ORC_TYPE_PARTIAL_REGS:
    return FRAME_PARTIAL;
  default:
    return FRAME_OUTER;
  }
}

bool frame_switches_stack(const struct orc_rule *rule) {
  return rule->type == ORC_TYPE_CALL && (rule->sp_register == ORC_SP_INDIRECT ||
                                         rule->sp_register == ORC_BP_INDIRECT);
}

/* Where the CFA is above what a rule of ORC leads to. */
static int base_of(enum frame_class class) {
  return class == FRAME_REGS      ? REGS_SIZE
         : class == FRAME_PARTIAL ? INTERRUPT_SIZE
                                  : 0;
}

/* ---- between the kernel's stack and user mode ------------------------------
 */

/* Addresses of user mode, whatever its page tables are. */
#define USER_BITS 56
/* What is pushed above an interrupt's frame on the way out: di, ax. */
#define MAX_PUSHED 2
/* While that frame is copied rdi points at the saved di, ax and the frame. */
#define COPIED_FROM_DI 16
#define INTERRUPT_SS 32
#define USER_SS 0x2b

/* Leaves whether the word at rsp + `offset` is `value`. */
static void put_is_word(struct buffer *out, int offset, uint8_t value) {
  put_u8(out, DW_OP_breg0 + DW_RSP);
  put_sleb(out, offset);
  const uint8_t is_value[] = {DW_OP_deref, DW_OP_const1u, value, DW_OP_eq};
  buffer_put(out, is_value, sizeof(is_value));
}

/* Where what the processor pushes for an interrupt of user mode lies, + `part`.
 */
static void put_interrupt_frame(struct buffer *out, int part) {
  put_u8(out, DW_OP_breg0 + DW_RDI);
  put_sleb(out, COPIED_FROM_DI + part);
  for (int pushed = MAX_PUSHED; pushed >= 0; pushed--) {
    put_u8(out, DW_OP_breg0 + DW_RSP);
    put_sleb(out, 8 * pushed + part);
    put_is_word(out, 8 * pushed + INTERRUPT_CS, USER_CS);
    put_is_word(out, 8 * pushed + INTERRUPT_CS, USER32_CS);
    put_u8(out, DW_OP_or);
    put_is_word(out, 8 * pushed + INTERRUPT_SS, USER_SS);
    /* Of the place so far and this one, the one that it is. */
    const uint8_t choose[] = {DW_OP_and,  DW_OP_bra, 4, 0,          DW_OP_drop,
                              DW_OP_skip, 2,         0, DW_OP_swap, DW_OP_drop};
    buffer_put(out, choose, sizeof(choose));
  }
}

/* A CFA of user mode, or of a stack that nobody knows, could be anywhere; this
 * one is below all others, as that of a called function is. */
static void put_lowest_cfa(struct buffer *out) {
  put_u8(out, DW_CFA_def_cfa_expression);
  put_uleb(out, 1);
  put_u8(out, DW_OP_lit0);
}

static void put_iret_rules(struct buffer *out) {
  static const struct {
    uint8_t reg;
    int part;
  } saved[] = {{DW_RIP, INTERRUPT_RIP}, {DW_RSP, INTERRUPT_RSP}};
  put_lowest_cfa(out);
  for (size_t i = 0; i < sizeof(saved) / sizeof(saved[0]); i++) {
    uint8_t bytes[128];
    struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
    put_interrupt_frame(&expression, saved[i].part);
    put_u8(out, DW_CFA_expression);
    put_uleb(out, saved[i].reg);
    put_uleb(out, expression.length);
    buffer_put(out, bytes, expression.length);
  }
}

/* Up to its first instructions, rsp is still that of user mode: 0 elsewhere. */
static void put_syscall_rules(struct buffer *out) {
  put_lowest_cfa(out);
  put_u8(out, DW_CFA_register);
  put_uleb(out, DW_RIP);
  put_uleb(out, DW_RCX);
  const uint8_t user_sp[] = {DW_OP_breg0 + DW_RSP, 0,         DW_OP_dup,
                             DW_OP_const1u,        USER_BITS, DW_OP_shr,
                             DW_OP_lit0,           DW_OP_eq,  DW_OP_mul};
  put_u8(out, DW_CFA_val_expression);
  put_uleb(out, DW_RSP);
  put_uleb(out, sizeof(user_sp));
  buffer_put(out, user_sp, sizeof(user_sp));
}

/* ---- CIEs ------------------------------------------------------------------
 */

static void put_saved(struct buffer *out, uint8_t reg, int offset) {
  if (offset % DATA_ALIGNMENT == 0 && offset <= 0) {
    put_u8(out, (uint8_t)(DW_CFA_offset | reg));
    put_uleb(out, (uint64_t)(offset / DATA_ALIGNMENT));
  } else if (offset % DATA_ALIGNMENT == 0) {
    put_u8(out, DW_CFA_offset_extended_sf);
    put_uleb(out, reg);
    put_sleb(out, offset / DATA_ALIGNMENT);
  } else {
    uint8_t bytes[16];
    struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
    put_u8(&expression, DW_OP_consts);
    put_sleb(&expression, offset);
    put_u8(&expression, DW_OP_plus);
    put_u8(out, DW_CFA_expression);
    put_uleb(out, reg);
    put_uleb(out, expression.length);
    buffer_put(out, bytes, expression.length);
  }
}

static void put_undefined(struct buffer *out) {
  for (uint8_t reg = DW_RAX; reg <= DW_R15; reg++)
    if (reg != DW_RBP && reg != DW_RSP) {
      put_u8(out, DW_CFA_undefined);
      put_uleb(out, reg);
    }
}

static void put_initial_rules(struct buffer *out, enum frame_class class) {
  if (class == FRAME_SYSCALL || class == FRAME_IRET) {
    put_undefined(out);
    put_u8(out, DW_CFA_same_value);
    put_uleb(out, DW_RBP);
    if (class == FRAME_SYSCALL)
      put_syscall_rules(out);
    else
      put_iret_rules(out);
    return;
  }
  put_u8(out, DW_CFA_def_cfa);
  put_uleb(out, DW_RSP);
  put_uleb(out, class == FRAME_CALL || class == FRAME_OUTER
                    ? 8
                    : (uint64_t)base_of(class));
  if (class == FRAME_REGS) {
    for (size_t i = 0; i < sizeof(regs_layout) / sizeof(regs_layout[0]); i++)
      put_saved(out, regs_layout[i].reg, regs_layout[i].offset - REGS_SIZE);
    return;
  }
  put_undefined(out);
  put_u8(out, DW_CFA_same_value);
  put_uleb(out, DW_RBP);
  if (class == FRAME_PARTIAL) {
    put_saved(out, DW_RIP, INTERRUPT_RIP - INTERRUPT_SIZE);
    put_saved(out, DW_RSP, INTERRUPT_RSP - INTERRUPT_SIZE);
    return;
  }
  put_u8(out, DW_CFA_val_offset);
  put_uleb(out, DW_RSP);
  put_uleb(out, 0);
  if (class == FRAME_CALL) {
    put_saved(out, DW_RIP, -8);
  } else {
    put_u8(out, DW_CFA_undefined);
    put_uleb(out, DW_RIP);
  }
}

uint32_t frame_put_cie(struct buffer *out, enum frame_class class,
                       bool signal) {
  size_t start = out->length;
  put_u32(out, 0);
  put_u32(out, UINT32_MAX);
  put_u8(out, 3); /* version */
  put_text(out, signal ? "S" : "");
  put_uleb(out, 1);
  put_sleb(out, DATA_ALIGNMENT);
  put_uleb(out, DW_RIP);
  put_initial_rules(out, class);
  frame_end_entry(out, start);
  return (uint32_t)start;
}

void frame_end_entry(struct buffer *out, size_t start) {
  while (out->status == KVMGDB_OK && (out->length - start) % ENTRY_ALIGNMENT)
    put_u8(out, 0); /* DW_CFA_nop */
  buffer_patch_u32(out, start, (uint32_t)(out->length - start - 4));
}

/* ---- rows ------------------------------------------------------------------
 */

static uint8_t register_of(uint8_t orc) {
  switch (orc) {
  case ORC_AX:
    return DW_RAX;
  case ORC_DX:
    return DW_RDX;
  case ORC_DI:
    return DW_RDI;
  case ORC_R10:
    return DW_R10;
  case ORC_R13:
    return DW_R13;
  case ORC_BP:
  case ORC_BP_INDIRECT:
    return DW_RBP;
  default:
    return DW_RSP;
  }
}

/* An indirect rule adds its offset behind the load for the stack pointer, and
 * before it for rbp; one by another register has none. */
static void put_cfa(struct buffer *out, const struct orc_rule *rule, int base) {
  uint8_t reg = register_of(rule->sp_register);
  bool indirect = rule->sp_register == ORC_SP_INDIRECT ||
                  rule->sp_register == ORC_BP_INDIRECT;
  bool has_offset =
      rule->sp_register == ORC_SP || rule->sp_register == ORC_BP || indirect;
  int offset = has_offset ? rule->sp_offset : 0;
  if (!indirect && offset + base >= 0) {
    put_u8(out, DW_CFA_def_cfa);
    put_uleb(out, reg);
    put_uleb(out, (uint64_t)(offset + base));
    return;
  }
  uint8_t bytes[32];
  struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
  put_u8(&expression, (uint8_t)(DW_OP_breg0 + reg));
  put_sleb(&expression, rule->sp_register == ORC_SP_INDIRECT ? 0 : offset);
  if (indirect)
    put_u8(&expression, DW_OP_deref);
  put_u8(&expression, DW_OP_consts);
  put_sleb(&expression,
           base + (rule->sp_register == ORC_SP_INDIRECT ? offset : 0));
  put_u8(&expression, DW_OP_plus);
  put_u8(out, DW_CFA_def_cfa_expression);
  put_uleb(out, expression.length);
  buffer_put(out, bytes, expression.length);
}

/*
 * Behind its call of error_entry(), which leaves all of struct pt_regs on the
 * stack, entry code of 6.1 has the rule of before it: which of both it is can
 * be told by the code segment. Leaves whether it is before.
 */
static void put_is_partial(struct buffer *out, const struct orc_rule *rule) {
  put_u8(out, DW_OP_breg0 + DW_RSP);
  put_sleb(out, rule->sp_offset + INTERRUPT_CS);
  const uint8_t is_code_segment[] = {
      DW_OP_deref, DW_OP_dup,     DW_OP_const1u, KERNEL_CS, DW_OP_eq,
      DW_OP_over,  DW_OP_const1u, USER_CS,       DW_OP_eq,  DW_OP_or,
      DW_OP_swap,  DW_OP_const1u, USER32_CS,     DW_OP_eq,  DW_OP_or};
  buffer_put(out, is_code_segment, sizeof(is_code_segment));
}

/* Either of two expressions, each shorter than 128 bytes. */
static void put_choice(struct buffer *out, const struct buffer *otherwise,
                       const struct buffer *chosen) {
  put_u8(out, DW_OP_bra);
  put_u16(out, (uint16_t)(otherwise->length + 3));
  buffer_put(out, otherwise->data, otherwise->length);
  put_u8(out, DW_OP_skip);
  put_u16(out, (uint16_t)chosen->length);
  buffer_put(out, chosen->data, chosen->length);
}

/* The CFA and rbp of a row that may be either. */
static void put_partial_row(struct buffer *out, const struct orc_rule *rule) {
  uint8_t whole_bytes[16], partial_bytes[16], bytes[64];
  struct buffer whole = {.data = whole_bytes, .capacity = sizeof(whole_bytes)};
  struct buffer partial = {.data = partial_bytes,
                           .capacity = sizeof(partial_bytes)};
  struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
  put_u8(&whole, DW_OP_breg0 + DW_RSP);
  put_sleb(&whole, REGS_SIZE);
  put_u8(&partial, DW_OP_breg0 + DW_RSP);
  put_sleb(&partial, rule->sp_offset + INTERRUPT_SIZE);
  put_is_partial(&expression, rule);
  put_choice(&expression, &whole, &partial);
  put_u8(out, DW_CFA_def_cfa_expression);
  put_uleb(out, expression.length);
  buffer_put(out, bytes, expression.length);

  whole.length = partial.length = expression.length = 0;
  put_u8(&whole, DW_OP_breg0 + DW_RSP);
  put_sleb(&whole, REGS_RBP);
  put_u8(&whole, DW_OP_deref);
  put_u8(&partial, DW_OP_breg0 + DW_RBP);
  put_sleb(&partial, 0);
  put_is_partial(&expression, rule);
  put_choice(&expression, &whole, &partial);
  put_u8(out, DW_CFA_val_expression);
  put_uleb(out, DW_RBP);
  put_uleb(out, expression.length);
  buffer_put(out, bytes, expression.length);
}

static bool may_be_whole(const struct orc_rule *rule) {
  return rule->type == ORC_TYPE_PARTIAL_REGS && rule->sp_register == ORC_SP &&
         rule->bp_register == ORC_UNDEFINED;
}

static void put_bp(struct buffer *out, const struct orc_rule *rule, int base) {
  switch (rule->bp_register) {
  case ORC_PREV_SP:
    put_saved(out, DW_RBP, rule->bp_offset - base);
    break;
  case ORC_BP: {
    uint8_t bytes[8];
    struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
    put_u8(&expression, DW_OP_breg0 + DW_RBP);
    put_sleb(&expression, rule->bp_offset);
    put_u8(out, DW_CFA_expression);
    put_uleb(out, DW_RBP);
    put_uleb(out, expression.length);
    buffer_put(out, bytes, expression.length);
    break;
  }
  default:
    put_u8(out, DW_CFA_restore | DW_RBP);
    break;
  }
}

/* Leaves 1 where the word at rsp + `offset` is an address of the code, or
 * close behind it, and 0 elsewhere. */
static void put_is_own(struct buffer *out, int offset, uint64_t start,
                       unsigned shift) {
  put_u8(out, DW_OP_breg0 + DW_RSP);
  put_sleb(out, offset);
  put_u8(out, DW_OP_deref);
  put_u8(out, DW_OP_addr);
  put_u64(out, start);
  const uint8_t in_range[] = {DW_OP_minus, DW_OP_const1u, (uint8_t)shift,
                              DW_OP_shr,   DW_OP_lit0,    DW_OP_eq};
  buffer_put(out, in_range, sizeof(in_range));
}

void frame_put_counted_row(struct buffer *out, const struct orc_rule *rule,
                           uint64_t start, uint64_t end) {
  uint8_t bytes[80];
  struct buffer expression = {.data = bytes, .capacity = sizeof(bytes)};
  unsigned shift = 0;
  while (shift < 63 && (end - start - 1) >> shift)
    shift++;
  put_u8(&expression, DW_OP_breg0 + DW_RSP);
  put_sleb(&expression, rule->sp_offset);
  put_is_own(&expression, 0, start, shift);
  put_is_own(&expression, 8, start, shift);
  /* first * (1 + second) words */
  const uint8_t add_words[] = {DW_OP_lit0 + 1, DW_OP_plus, DW_OP_mul,
                               DW_OP_lit0 + 8, DW_OP_mul,  DW_OP_plus};
  buffer_put(&expression, add_words, sizeof(add_words));
  put_u8(out, DW_CFA_def_cfa_expression);
  put_uleb(out, expression.length);
  buffer_put(out, bytes, expression.length);
  put_bp(out, rule, 0);
}

void frame_put_row(struct buffer *out, const struct orc_rule *before,
                   const struct orc_rule *rule) {
  enum frame_class class = frame_class_of(rule);
  if (class == FRAME_OUTER)
    return;
  int base = base_of(class);
  if (may_be_whole(rule)) {
    if (!before || !may_be_whole(before) ||
        before->sp_offset != rule->sp_offset)
      put_partial_row(out, rule);
    return;
  }
  if (before && may_be_whole(before)) {
    put_bp(out, rule, base);
    before = NULL;
  }
  if (!before || before->sp_register != rule->sp_register ||
      before->sp_offset != rule->sp_offset)
    put_cfa(out, rule, base);
  bool saves = rule->bp_register == ORC_PREV_SP || rule->bp_register == ORC_BP;
  bool saved = before && (before->bp_register == ORC_PREV_SP ||
                          before->bp_register == ORC_BP);
  if (saves ? !saved || before->bp_register != rule->bp_register ||
                  before->bp_offset != rule->bp_offset
            : saved)
    put_bp(out, rule, base);
}
