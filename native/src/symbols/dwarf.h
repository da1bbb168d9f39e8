/* The numbers of DWARF 4 and 5 that are used here (chapter 7 of the standard),
 * and the abbreviations of our entries. */
#ifndef KVMGDB_SYMBOLS_DWARF_H
#define KVMGDB_SYMBOLS_DWARF_H

#include "buffer.h"

#define DW_UT_compile 0x01
#define DW_LLE_end_of_list 0x00
#define DW_LLE_offset_pair 0x04
#define DW_LANG_C99 0x0c

enum {
  DW_ATE_boolean = 0x02,
  DW_ATE_float = 0x04,
  DW_ATE_signed = 0x05,
  DW_ATE_signed_char = 0x06,
  DW_ATE_unsigned = 0x07,
  DW_ATE_unsigned_char = 0x08,
};

enum {
  DW_OP_addr = 0x03,
  DW_OP_deref = 0x06,
  DW_OP_const1u = 0x08,
  DW_OP_consts = 0x11,
  DW_OP_dup = 0x12,
  DW_OP_drop = 0x13,
  DW_OP_over = 0x14,
  DW_OP_swap = 0x16,
  DW_OP_and = 0x1a,
  DW_OP_minus = 0x1c,
  DW_OP_mul = 0x1e,
  DW_OP_neg = 0x1f,
  DW_OP_or = 0x21,
  DW_OP_plus = 0x22,
  DW_OP_shr = 0x25,
  DW_OP_bra = 0x28,
  DW_OP_eq = 0x29,
  DW_OP_skip = 0x2f,
  DW_OP_lit0 = 0x30,
  DW_OP_reg0 = 0x50,
  DW_OP_breg0 = 0x70,
};

/* psABI for x86-64, figure 3.36. */
enum {
  DW_RAX,
  DW_RDX,
  DW_RCX,
  DW_RBX,
  DW_RSI,
  DW_RDI,
  DW_RBP,
  DW_RSP,
  DW_R8,
  DW_R9,
  DW_R10,
  DW_R11,
  DW_R12,
  DW_R13,
  DW_R14,
  DW_R15,
  DW_RIP,
};

enum {
  DW_CFA_advance_loc = 0x40,
  DW_CFA_offset = 0x80,
  DW_CFA_advance_loc1 = 0x02,
  DW_CFA_advance_loc2 = 0x03,
  DW_CFA_advance_loc4 = 0x04,
  DW_CFA_undefined = 0x07,
  DW_CFA_same_value = 0x08,
  DW_CFA_register = 0x09,
  DW_CFA_def_cfa = 0x0c,
  DW_CFA_def_cfa_expression = 0x0f,
  DW_CFA_expression = 0x10,
  DW_CFA_offset_extended_sf = 0x11,
  DW_CFA_val_offset = 0x14,
  DW_CFA_val_expression = 0x16,
  DW_CFA_restore = 0xc0,
};

/*
 * One abbreviation for each shape that an entry takes. TYPED and VOID of a kind
 * stand next to each other, in this order: a type that is void is left out.
 */
enum abbreviation {
  ABBREV_TYPE_UNIT = 1,
  ABBREV_CODE_UNIT,
  ABBREV_BASE,
  ABBREV_DAMAGED, /* what BTF refers to and does not have */
  ABBREV_POINTER,
  ABBREV_POINTER_VOID,
  ABBREV_CONST,
  ABBREV_CONST_VOID,
  ABBREV_VOLATILE,
  ABBREV_VOLATILE_VOID,
  ABBREV_RESTRICT,
  ABBREV_RESTRICT_VOID,
  ABBREV_TYPEDEF,
  ABBREV_TYPEDEF_VOID,
  ABBREV_SUBROUTINE,
  ABBREV_SUBROUTINE_VOID,
  ABBREV_ARRAY,
  ABBREV_BOUND,
  ABBREV_BOUND_OPEN,
  ABBREV_STRUCT,
  ABBREV_STRUCT_ANONYMOUS,
  ABBREV_UNION,
  ABBREV_UNION_ANONYMOUS,
  ABBREV_ENUM,
  ABBREV_ENUM_ANONYMOUS,
  ABBREV_STRUCT_DECLARED,
  ABBREV_UNION_DECLARED,
  ABBREV_ENUM_DECLARED,
  ABBREV_MEMBER,
  ABBREV_MEMBER_ANONYMOUS,
  ABBREV_BITS,
  ABBREV_BITS_ANONYMOUS,
  ABBREV_VALUE_UNSIGNED,
  ABBREV_VALUE_SIGNED,
  ABBREV_PARAMETER,
  ABBREV_PARAMETER_NAMED,
  ABBREV_PARAMETER_LOCATED,
  ABBREV_PARAMETERS_OPEN,
  ABBREV_FUNCTION,
  ABBREV_FUNCTION_VOID,
  ABBREV_FUNCTION_STATIC,
  ABBREV_FUNCTION_STATIC_VOID,
  ABBREV_FUNCTION_UNTYPED,
  ABBREV_VARIABLE,
  ABBREV_PERCPU_AREA,
  ABBREV_PERCPU_MEMBER,
};

/* Writes .debug_abbrev. */
void dwarf_put_abbreviations(struct buffer *out);

#endif
