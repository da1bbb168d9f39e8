/* .debug_abbrev: one table for all units. */
#include "dwarf.h"

enum {
  DW_TAG_array_type = 0x01,
  DW_TAG_enumeration_type = 0x04,
  DW_TAG_formal_parameter = 0x05,
  DW_TAG_member = 0x0d,
  DW_TAG_pointer_type = 0x0f,
  DW_TAG_compile_unit = 0x11,
  DW_TAG_structure_type = 0x13,
  DW_TAG_subroutine_type = 0x15,
  DW_TAG_typedef = 0x16,
  DW_TAG_union_type = 0x17,
  DW_TAG_unspecified_parameters = 0x18,
  DW_TAG_subrange_type = 0x21,
  DW_TAG_base_type = 0x24,
  DW_TAG_const_type = 0x26,
  DW_TAG_enumerator = 0x28,
  DW_TAG_subprogram = 0x2e,
  DW_TAG_variable = 0x34,
  DW_TAG_volatile_type = 0x35,
  DW_TAG_restrict_type = 0x37,
  DW_TAG_unspecified_type = 0x3b,
};

enum {
  DW_AT_location = 0x02,
  DW_AT_name = 0x03,
  DW_AT_byte_size = 0x0b,
  DW_AT_bit_size = 0x0d,
  DW_AT_low_pc = 0x11,
  DW_AT_high_pc = 0x12,
  DW_AT_language = 0x13,
  DW_AT_const_value = 0x1c,
  DW_AT_producer = 0x25,
  DW_AT_prototyped = 0x27,
  DW_AT_count = 0x37,
  DW_AT_data_member_location = 0x38,
  DW_AT_declaration = 0x3c,
  DW_AT_encoding = 0x3e,
  DW_AT_external = 0x3f,
  DW_AT_type = 0x49,
  DW_AT_data_bit_offset = 0x6b,
};

enum {
  DW_FORM_addr = 0x01,
  DW_FORM_string = 0x08,
  DW_FORM_data1 = 0x0b,
  DW_FORM_data4 = 0x06,
  DW_FORM_sdata = 0x0d,
  DW_FORM_strp = 0x0e,
  DW_FORM_udata = 0x0f,
  DW_FORM_ref4 = 0x13,
  DW_FORM_sec_offset = 0x17,
  DW_FORM_exprloc = 0x18,
  DW_FORM_flag_present = 0x19,
};

#define NAME DW_AT_name, DW_FORM_strp
#define TYPE DW_AT_type, DW_FORM_ref4
#define SIZE DW_AT_byte_size, DW_FORM_udata
#define DECLARED DW_AT_declaration, DW_FORM_flag_present
#define PROTOTYPED DW_AT_prototyped, DW_FORM_flag_present
#define EXTERNAL DW_AT_external, DW_FORM_flag_present
#define AT DW_AT_data_member_location, DW_FORM_udata
#define BITS DW_AT_bit_size, DW_FORM_udata, DW_AT_data_bit_offset, DW_FORM_udata
#define CODE DW_AT_low_pc, DW_FORM_addr, DW_AT_high_pc, DW_FORM_data4
#define UNIT DW_AT_producer, DW_FORM_strp, DW_AT_language, DW_FORM_data1, NAME

#define MAX_PAIRS 6

struct shape {
  uint8_t tag;
  uint8_t has_children;
  uint8_t attributes[2 * MAX_PAIRS];
};

static const struct shape shapes[] = {
    [ABBREV_TYPE_UNIT] = {DW_TAG_compile_unit, 1, {UNIT}},
    [ABBREV_CODE_UNIT] = {DW_TAG_compile_unit, 1, {UNIT, CODE}},
    [ABBREV_BASE] = {DW_TAG_base_type,
                     0,
                     {NAME, SIZE, DW_AT_encoding, DW_FORM_data1}},
    [ABBREV_DAMAGED] = {DW_TAG_unspecified_type, 0, {NAME}},
    [ABBREV_POINTER] = {DW_TAG_pointer_type, 0, {SIZE, TYPE}},
    [ABBREV_POINTER_VOID] = {DW_TAG_pointer_type, 0, {SIZE}},
    [ABBREV_CONST] = {DW_TAG_const_type, 0, {TYPE}},
    [ABBREV_CONST_VOID] = {DW_TAG_const_type, 0, {0}},
    [ABBREV_VOLATILE] = {DW_TAG_volatile_type, 0, {TYPE}},
    [ABBREV_VOLATILE_VOID] = {DW_TAG_volatile_type, 0, {0}},
    [ABBREV_RESTRICT] = {DW_TAG_restrict_type, 0, {TYPE}},
    [ABBREV_RESTRICT_VOID] = {DW_TAG_restrict_type, 0, {0}},
    [ABBREV_TYPEDEF] = {DW_TAG_typedef, 0, {NAME, TYPE}},
    [ABBREV_TYPEDEF_VOID] = {DW_TAG_typedef, 0, {NAME}},
    [ABBREV_SUBROUTINE] = {DW_TAG_subroutine_type, 1, {PROTOTYPED, TYPE}},
    [ABBREV_SUBROUTINE_VOID] = {DW_TAG_subroutine_type, 1, {PROTOTYPED}},
    [ABBREV_ARRAY] = {DW_TAG_array_type, 1, {TYPE}},
    [ABBREV_BOUND] = {DW_TAG_subrange_type, 0, {DW_AT_count, DW_FORM_udata}},
    [ABBREV_BOUND_OPEN] = {DW_TAG_subrange_type, 0, {0}},
    [ABBREV_STRUCT] = {DW_TAG_structure_type, 1, {SIZE, NAME}},
    [ABBREV_STRUCT_ANONYMOUS] = {DW_TAG_structure_type, 1, {SIZE}},
    [ABBREV_UNION] = {DW_TAG_union_type, 1, {SIZE, NAME}},
    [ABBREV_UNION_ANONYMOUS] = {DW_TAG_union_type, 1, {SIZE}},
    [ABBREV_ENUM] = {DW_TAG_enumeration_type, 1, {SIZE, NAME}},
    [ABBREV_ENUM_ANONYMOUS] = {DW_TAG_enumeration_type, 1, {SIZE}},
    [ABBREV_STRUCT_DECLARED] = {DW_TAG_structure_type, 0, {NAME, DECLARED}},
    [ABBREV_UNION_DECLARED] = {DW_TAG_union_type, 0, {NAME, DECLARED}},
    [ABBREV_ENUM_DECLARED] = {DW_TAG_enumeration_type, 0, {NAME, DECLARED}},
    [ABBREV_MEMBER] = {DW_TAG_member, 0, {TYPE, AT, NAME}},
    [ABBREV_MEMBER_ANONYMOUS] = {DW_TAG_member, 0, {TYPE, AT}},
    [ABBREV_BITS] = {DW_TAG_member, 0, {TYPE, BITS, NAME}},
    [ABBREV_BITS_ANONYMOUS] = {DW_TAG_member, 0, {TYPE, BITS}},
    [ABBREV_VALUE_UNSIGNED] = {DW_TAG_enumerator,
                               0,
                               {NAME, DW_AT_const_value, DW_FORM_udata}},
    [ABBREV_VALUE_SIGNED] = {DW_TAG_enumerator,
                             0,
                             {NAME, DW_AT_const_value, DW_FORM_sdata}},
    [ABBREV_PARAMETER] = {DW_TAG_formal_parameter, 0, {TYPE}},
    [ABBREV_PARAMETER_NAMED] = {DW_TAG_formal_parameter, 0, {TYPE, NAME}},
    [ABBREV_PARAMETER_LOCATED] = {DW_TAG_formal_parameter,
                                  0,
                                  {TYPE, NAME, DW_AT_location,
                                   DW_FORM_sec_offset}},
    [ABBREV_PARAMETERS_OPEN] = {DW_TAG_unspecified_parameters, 0, {0}},
    [ABBREV_FUNCTION] = {DW_TAG_subprogram,
                         1,
                         {NAME, CODE, PROTOTYPED, EXTERNAL, TYPE}},
    [ABBREV_FUNCTION_VOID] =
        {DW_TAG_subprogram, 1, {NAME, CODE, PROTOTYPED, EXTERNAL}},
    [ABBREV_FUNCTION_STATIC] = {DW_TAG_subprogram,
                                1,
                                {NAME, CODE, PROTOTYPED, TYPE}},
    [ABBREV_FUNCTION_STATIC_VOID] = {DW_TAG_subprogram,
                                     1,
                                     {NAME, CODE, PROTOTYPED}},
    [ABBREV_FUNCTION_UNTYPED] = {DW_TAG_subprogram, 0, {NAME, CODE}},
    [ABBREV_VARIABLE] = {DW_TAG_variable,
                         0,
                         {NAME, TYPE, EXTERNAL, DW_AT_location,
                          DW_FORM_exprloc}},
    [ABBREV_PERCPU_AREA] = {DW_TAG_structure_type, 1, {SIZE, NAME}},
    [ABBREV_PERCPU_MEMBER] = {DW_TAG_member,
                              0,
                              {TYPE, DW_AT_data_member_location, DW_FORM_sdata,
                               NAME}},
};

void dwarf_put_abbreviations(struct buffer *out) {
  for (size_t code = 1; code < sizeof(shapes) / sizeof(shapes[0]); code++) {
    put_uleb(out, code);
    put_uleb(out, shapes[code].tag);
    put_u8(out, shapes[code].has_children);
    for (int i = 0; i < MAX_PAIRS && shapes[code].attributes[2 * i]; i++) {
      put_uleb(out, shapes[code].attributes[2 * i]);
      put_uleb(out, shapes[code].attributes[2 * i + 1]);
    }
    put_u16(out, 0);
  }
  put_u8(out, 0);
}
