/*
 * Frames of a stack, from copies of it: unwind_next_frame() of arch/x86/kernel/
 * unwind_orc.c, which keeps its promise to never trust what it unwinds.
 */
#include <string.h>

#include "../error.h"
#include "unwind.h"

/* Where the kernel's own code and that of its modules begins. */
#define KERNEL_CODE UINT64_C(0xffffffff80000000)
#define MAX_STACKS 64
/* A loop of FILL_RETURN_BUFFER is shorter. */
#define OWN_CODE 64

bool unwind_stop(struct unwind *unwind, enum kvmgdb_unwind_end end,
                 uint64_t address) {
  unwind->result->end = (int)end;
  unwind->result->address = address;
  return false;
}

const struct kvmgdb_stack *unwind_stack_of(const struct unwind *unwind,
                                           uint64_t address, size_t length) {
  for (size_t i = 0; i < unwind->stack_count; i++) {
    const struct kvmgdb_stack *stack = &unwind->stacks[i];
    uint64_t offset = address - stack->address;
    if (address >= stack->address && offset < stack->length &&
        stack->length - offset >= length)
      return stack;
  }
  return NULL;
}

bool unwind_load(struct unwind *unwind, uint64_t address, uint64_t *value) {
  const struct kvmgdb_stack *stack =
      unwind_stack_of(unwind, address, sizeof(*value));
  if (!stack)
    return unwind_stop(unwind, KVMGDB_UNWIND_NEED_STACK, address);
  memcpy(value, (const char *)stack->data + (address - stack->address),
         sizeof(*value));
  return true;
}

static bool load_register(struct unwind *unwind, int reg, uint64_t address) {
  if (!unwind_load(unwind, address, &unwind->value[reg]))
    return false;
  unwind->known |= 1u << reg;
  return true;
}

bool unwind_get(struct unwind *unwind, int reg, uint64_t *value) {
  if (!(unwind->known >> reg & 1))
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_REGISTER,
                       unwind->value[REG_IP]);
  *value = unwind->value[reg];
  return true;
}

/* The caller's stack pointer, or where the registers lie. */
static bool find_previous_sp(struct unwind *unwind, const struct orc_rule *rule,
                             uint64_t *sp) {
  uint64_t offset = (uint64_t)(int64_t)rule->sp_offset;
  switch (rule->sp_register) {
  case ORC_SP:
    *sp = unwind->value[REG_SP] + offset;
    return true;
  case ORC_BP:
    if (!unwind_get(unwind, REG_BP, sp))
      return false;
    *sp += offset;
    return true;
  case ORC_SP_INDIRECT:
    if (!unwind_load(unwind, unwind->value[REG_SP], sp))
      return false;
    *sp += offset;
    return true;
  case ORC_BP_INDIRECT:
    return unwind_get(unwind, REG_BP, sp) &&
           unwind_load(unwind, *sp + offset, sp);
  case ORC_AX:
    return unwind_get(unwind, REG_AX, sp);
  case ORC_DX:
    return unwind_get(unwind, REG_DX, sp);
  case ORC_DI:
    return unwind_get(unwind, REG_DI, sp);
  case ORC_R10:
    return unwind_get(unwind, REG_R10, sp);
  case ORC_R13:
    return unwind_get(unwind, REG_R13, sp);
  default:
    return unwind_stop(unwind, KVMGDB_UNWIND_UNDEFINED, unwind->value[REG_IP]);
  }
}

/* Where the caller's bp was saved, if it was: read before anything changes. */
static bool find_previous_bp(struct unwind *unwind, const struct orc_rule *rule,
                             uint64_t sp, uint64_t *bp) {
  uint64_t offset = (uint64_t)(int64_t)rule->bp_offset;
  switch (rule->bp_register) {
  case ORC_PREV_SP:
    return unwind_load(unwind, sp + offset, bp);
  case ORC_BP:
    return unwind_get(unwind, REG_BP, bp) &&
           unwind_load(unwind, *bp + offset, bp);
  default:
    *bp = unwind->value[REG_BP];
    return true;
  }
}

static bool load_saved_registers(struct unwind *unwind, uint64_t regs) {
  static const struct {
    int reg;
    int offset;
  } saved[] = {{REG_R13, PT_R13}, {REG_BP, PT_BP}, {REG_R10, PT_R10},
               {REG_AX, PT_AX},   {REG_CX, PT_CX}, {REG_DX, PT_DX},
               {REG_DI, PT_DI}};
  for (size_t i = 0; i < sizeof(saved) / sizeof(saved[0]); i++)
    if (!load_register(unwind, saved[i].reg, regs + (uint64_t)saved[i].offset))
      return false;
  return true;
}

/* __KERNEL_CS, __USER32_CS, __USER_CS, or a segment of a program's own. With
 * FRED there are flags above the selector. */
bool unwind_is_code_segment(uint64_t cs) {
  uint64_t selector = cs & 0xffff;
  return cs >> 19 == 0 && (selector == 0x10 || selector == 0x23 ||
                           selector == 0x33 || (selector & 7) == 7);
}

bool unwind_load_entry(struct unwind *unwind, uint64_t frame) {
  uint64_t ip, cs, sp;
  if (!unwind_load(unwind, frame, &ip) ||
      !unwind_load(unwind, frame + IRET_CS, &cs) ||
      !unwind_load(unwind, frame + IRET_SP, &sp))
    return false;
  unwind->value[REG_IP] = ip;
  unwind->value[REG_SP] = sp;
  unwind->exact = true;
  unwind->user = (cs & USER_PRIVILEGE) == USER_PRIVILEGE;
  unwind->registers = frame - PT_IP;
  unwind->source =
      unwind->user ? KVMGDB_FRAME_USER_REGISTERS : KVMGDB_FRAME_ENTRY;
  return true;
}

/* In one stack the caller's frame lies above. */
static bool check_progress(struct unwind *unwind, uint64_t before) {
  const struct kvmgdb_stack *stack = unwind_stack_of(unwind, before, 1);
  uint64_t after = unwind->value[REG_SP];
  if (!unwind->user && stack && stack == unwind_stack_of(unwind, after, 1) &&
      after <= before)
    return unwind_stop(unwind, KVMGDB_UNWIND_LOOP, after);
  return true;
}

/*
 * Registers that an entry saved at `sp`. Behind the call of error_entry(),
 * which leaves all of them on the stack, the table of 6.1 has the rule of
 * before it.
 */
static bool apply_entry_rule(struct unwind *unwind, uint64_t sp, bool whole) {
  uint64_t cs;
  if (!unwind_load(unwind, sp + (whole ? PT_CS : IRET_CS), &cs))
    return false;
  if (!whole && !unwind_is_code_segment(cs)) {
    whole = true;
    sp = unwind->value[REG_SP];
    if (!unwind_load(unwind, sp + PT_CS, &cs))
      return false;
  }
  if (!unwind_is_code_segment(cs))
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_ENTRY, unwind->value[REG_IP]);
  return (!whole || load_saved_registers(unwind, sp)) &&
         unwind_load_entry(unwind, sp + (whole ? PT_IP : 0));
}

/* The return address right below `*sp`, or as far above as words lie in between
 * that calls within this code left: old tables do not count those. */
static bool load_return(struct unwind *unwind, uint64_t *sp, uint64_t *ip) {
  if (!unwind_load(unwind, *sp - 8, ip))
    return false;
  if (!unwind->exact || orc_find(unwind->unwinder, *ip - 1))
    return true;
  uint64_t own = unwind->value[REG_IP];
  uint64_t left = unwind_own_calls(unwind, own - OWN_CODE, own + OWN_CODE);
  *sp += left;
  return !left || unwind_load(unwind, *sp - 8, ip);
}

static bool apply_rule(struct unwind *unwind, const struct orc_rule *rule) {
  uint64_t before = unwind->value[REG_SP], sp, bp, ip;
  switch (rule->type) {
  case ORC_TYPE_END:
    return unwind_stop(unwind, KVMGDB_UNWIND_COMPLETE, unwind->value[REG_IP]);
  case ORC_TYPE_UNDEFINED:
    return unwind_stop(unwind, KVMGDB_UNWIND_UNDEFINED, unwind->value[REG_IP]);
  default:
    break;
  }
  if (!find_previous_sp(unwind, rule, &sp) ||
      (rule->type == ORC_TYPE_CALL && !load_return(unwind, &sp, &ip)) ||
      !find_previous_bp(unwind, rule, sp, &bp))
    return false;
  switch (rule->type) {
  case ORC_TYPE_CALL:
    unwind->value[REG_IP] = ip;
    unwind->value[REG_SP] = sp;
    unwind->known &= ~SCRATCH;
    unwind->exact = rule->signal;
    unwind->source = KVMGDB_FRAME_ORC;
    unwind->registers = 0;
    break;
  default:
    if (!apply_entry_rule(unwind, sp, rule->type == ORC_TYPE_REGS))
      return false;
    break;
  }
  if (rule->bp_register != ORC_UNDEFINED) {
    unwind->value[REG_BP] = bp;
    unwind->known |= 1u << REG_BP;
  }
  return check_progress(unwind, before);
}

/* push %rbp; mov %rsp,%rbp: the return address lies above the saved bp. */
static bool apply_frame_pointer(struct unwind *unwind) {
  uint64_t before = unwind->value[REG_SP], bp, caller, ip;
  if (!(unwind->known >> REG_BP & 1) || unwind->value[REG_BP] < before)
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_TABLE, unwind->value[REG_IP]);
  bp = unwind->value[REG_BP];
  if (!unwind_load(unwind, bp, &caller) || !unwind_load(unwind, bp + 8, &ip))
    return false;
  unwind->value[REG_IP] = ip;
  unwind->value[REG_SP] = bp + 16;
  unwind->value[REG_BP] = caller;
  unwind->known &= ~SCRATCH;
  unwind->exact = false;
  unwind->source = KVMGDB_FRAME_POINTER;
  unwind->registers = 0;
  return check_progress(unwind, before);
}

static bool next_user_frame(struct unwind *unwind) {
  uint64_t bp = unwind->value[REG_BP];
  if (!(unwind->known >> REG_BP & 1) || bp == 0)
    return unwind_stop(unwind, KVMGDB_UNWIND_COMPLETE, unwind->value[REG_IP]);
  if (!apply_frame_pointer(unwind))
    return false;
  if (unwind->value[REG_IP] == 0)
    return unwind_stop(unwind, KVMGDB_UNWIND_COMPLETE, 0);
  if (unwind->value[REG_SP] >> 63 || unwind->value[REG_IP] >> 63)
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_TABLE, unwind->value[REG_IP]);
  return true;
}

static const struct orc_rule *find_rule(const struct unwind *unwind,
                                        const struct orc_mark *mark,
                                        uint64_t place) {
  if (mark && mark->code == KVMGDB_CODE_COPY)
    place = mark->detail + (place - mark->start);
  return orc_find(unwind->unwinder, place);
}

static bool next_marked_frame(struct unwind *unwind, enum kvmgdb_code code) {
  switch (code) {
  case KVMGDB_CODE_THUNK:
    return unwind_leave_thunk(unwind);
  case KVMGDB_CODE_SYSCALL:
    return unwind_leave_syscall(unwind);
  case KVMGDB_CODE_IRET:
    return unwind_leave_iret(unwind);
  default:
    return apply_frame_pointer(unwind);
  }
}

static bool next_kernel_frame(struct unwind *unwind) {
  uint64_t ip = unwind->value[REG_IP], place = unwind->exact ? ip : ip - 1;
  const struct orc_mark *mark = orc_find_mark(unwind->unwinder, place);
  const struct orc_rule *rule = find_rule(unwind, mark, place);
  bool ruled =
      rule && rule->type != ORC_TYPE_UNDEFINED && rule->type != ORC_TYPE_END;
  if (mark && !ruled)
    return next_marked_frame(unwind, mark->code);
  if (rule) {
    const struct orc_rule marked =
        mark ? unwind_marked_rule(unwind, mark, rule) : *rule;
    if (!apply_rule(unwind, &marked))
      return false;
    /* A thunk's return is a jump: it may well be to where a function begins. */
    unwind->exact |= mark && mark->code == KVMGDB_CODE_THUNK;
    return true;
  }
  if (ip == 0 && unwind->exact)
    return unwind_leave_nothing(unwind);
  if (ip < KERNEL_CODE)
    return unwind_stop(unwind, KVMGDB_UNWIND_NO_TABLE, ip);
  return apply_frame_pointer(unwind);
}

static void add_frame(const struct unwind *unwind, struct kvmgdb_frame *frame) {
  *frame = (struct kvmgdb_frame){.ip = unwind->value[REG_IP],
                                 .sp = unwind->value[REG_SP],
                                 .bp = unwind->value[REG_BP],
                                 .source = unwind->source,
                                 .is_exact = unwind->exact,
                                 .bp_known = unwind->known >> REG_BP & 1,
                                 .registers = unwind->registers};
}

static void start(struct unwind *unwind,
                  const struct kvmgdb_unwind_registers *registers, int flags) {
  const uint64_t values[REGS] = {registers->ip,  registers->sp,  registers->bp,
                                 registers->ax,  registers->dx,  registers->di,
                                 registers->r10, registers->r13, registers->cx};
  memcpy(unwind->value, values, sizeof(values));
  unwind->known = registers->known;
  unwind->exact = !(flags & KVMGDB_UNWIND_FROM_CALL);
  unwind->user = registers->ip >> 63 == 0;
  unwind->source = KVMGDB_FRAME_REGISTERS;
}

enum kvmgdb_status
kvmgdb_unwind(const struct kvmgdb_unwinder *unwinder,
              const struct kvmgdb_unwind_registers *registers,
              const struct kvmgdb_stack *stacks, size_t stack_count, int flags,
              struct kvmgdb_frame *frames, size_t capacity,
              struct kvmgdb_unwind_result *result, struct kvmgdb_error *error) {
  const uint32_t needed = 1u << REG_IP | 1u << REG_SP;
  if (!unwinder || !registers || (!stacks && stack_count) || !frames ||
      capacity == 0 || !result || stack_count > MAX_STACKS ||
      (registers->known & needed) != needed)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  *result = (struct kvmgdb_unwind_result){0};
  struct unwind unwind = {.unwinder = unwinder,
                          .stacks = stacks,
                          .stack_count = stack_count,
                          .result = result};
  start(&unwind, registers, flags);
  for (;;) {
    if (result->count == capacity) {
      unwind_stop(&unwind, KVMGDB_UNWIND_FULL, unwind.value[REG_SP]);
      return KVMGDB_OK;
    }
    add_frame(&unwind, &frames[result->count++]);
    if (unwind.user && !(flags & KVMGDB_UNWIND_USER_FRAMES)) {
      unwind_stop(&unwind, KVMGDB_UNWIND_USER, unwind.value[REG_IP]);
      return KVMGDB_OK;
    }
    if (!(unwind.user ? next_user_frame(&unwind) : next_kernel_frame(&unwind)))
      return KVMGDB_OK;
  }
}
