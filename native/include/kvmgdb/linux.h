/*
 * kvmgdb.linux: reading what a Linux kernel wrote about itself into its own
 * memory. Symbol tables, type information, unwind tables and stacks come in as
 * copies that the caller made of guest memory; nothing here touches a guest.
 *
 * The contract is that of kvmgdb.h, and further:
 *  - the bytes are hostile: every count, offset, string and reference is
 *    checked against what was given, and loops are bounded by it. What cannot
 *    be what it claims to be is KVMGDB_ERR_MALFORMED, what is not there
 *    KVMGDB_ERR_NOT_FOUND; error->address is then the offset of the bytes at
 *    fault into what was given, or the address or number that was asked for;
 *  - objects copy what they keep, and do not change once created (except that
 *    an unwinder takes tables until it is used): several threads may use one;
 *  - strings that are handed out are null-terminated and live as long as the
 *    object that they come from.
 */
#ifndef KVMGDB_LINUX_H
#define KVMGDB_LINUX_H

#include <kvmgdb/kvmgdb.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

/* ---- symbols ----------------------------------------------------------- */

struct kvmgdb_symbols;

struct kvmgdb_symbol {
  uint64_t address;
  const char *name;
  char type;    /* as nm(1) has it */
  size_t index; /* by rising address */
};

/* Where the tables of kallsyms were found: offsets into the image. */
struct kvmgdb_kallsyms {
  uint64_t num_syms;
  uint64_t names;
  uint64_t markers;
  uint64_t token_table;
  uint64_t token_index;
  uint64_t offsets;
  uint64_t relative_base; /* the value; 0 where offsets are place-relative */
  int encoding;           /* enum kvmgdb_kallsyms_encoding */
};

enum kvmgdb_kallsyms_encoding {
  KVMGDB_KALLSYMS_ABSOLUTE_PERCPU = 1, /* off >= 0 ? off : base - 1 - off */
  KVMGDB_KALLSYMS_BASE_RELATIVE = 2,   /* base + off, unsigned */
  KVMGDB_KALLSYMS_PLACE_RELATIVE = 3,  /* address of the offset + off */
};

/*
 * The symbols of a kernel: `image` is a copy of `length` bytes of guest memory
 * from `address` on, zero where nothing is mapped, that holds the kernel's
 * read-only data; `base` is where the kernel begins (_text). The tables
 * (scripts/kallsyms.c) are found by their structure. `found` may be NULL.
 */
enum kvmgdb_status kvmgdb_symbols_from_kallsyms(const void *image,
                                                size_t length, uint64_t address,
                                                uint64_t base,
                                                struct kvmgdb_kallsyms *found,
                                                struct kvmgdb_symbols **out,
                                                struct kvmgdb_error *error);

/*
 * The symbols of a module: `count` entries of an ELF64 symbol table whose
 * values are run-time addresses, their strings, and one type letter each
 * (struct mod_kallsyms; `types` may be NULL, which makes them '?'). Symbols
 * without a name and symbols of section 0 are left out.
 */
enum kvmgdb_status kvmgdb_symbols_from_elf(const void *symtab, size_t count,
                                           const void *strings,
                                           size_t strings_length,
                                           const char *types,
                                           struct kvmgdb_symbols **out,
                                           struct kvmgdb_error *error);
void kvmgdb_symbols_destroy(struct kvmgdb_symbols *symbols);

size_t kvmgdb_symbols_count(const struct kvmgdb_symbols *symbols);

/* The symbol at `index`; NOT_FOUND beyond the last. */
enum kvmgdb_status kvmgdb_symbols_get(const struct kvmgdb_symbols *symbols,
                                      size_t index,
                                      struct kvmgdb_symbol *symbol,
                                      struct kvmgdb_error *error);

/*
 * The last symbol at or below `address`, and of several at one place the first
 * that the kernel lists, which is the one that it prints itself. NOT_FOUND
 * below the first.
 */
enum kvmgdb_status kvmgdb_symbols_at(const struct kvmgdb_symbols *symbols,
                                     uint64_t address,
                                     struct kvmgdb_symbol *symbol,
                                     struct kvmgdb_error *error);

/*
 * Symbols with this name, by rising address: start with *index = 0 and go on
 * with what the call left there. NOT_FOUND when there is none (any more).
 */
enum kvmgdb_status kvmgdb_symbols_named(const struct kvmgdb_symbols *symbols,
                                        const char *name, size_t *index,
                                        struct kvmgdb_symbol *symbol,
                                        struct kvmgdb_error *error);

/* ---- BTF (Documentation/bpf/btf.rst) ------------------------------------ */

struct kvmgdb_btf;

enum kvmgdb_btf_kind {
  KVMGDB_BTF_VOID = 0,
  KVMGDB_BTF_INT = 1,
  KVMGDB_BTF_PTR = 2,
  KVMGDB_BTF_ARRAY = 3,
  KVMGDB_BTF_STRUCT = 4,
  KVMGDB_BTF_UNION = 5,
  KVMGDB_BTF_ENUM = 6,
  KVMGDB_BTF_FWD = 7,
  KVMGDB_BTF_TYPEDEF = 8,
  KVMGDB_BTF_VOLATILE = 9,
  KVMGDB_BTF_CONST = 10,
  KVMGDB_BTF_RESTRICT = 11,
  KVMGDB_BTF_FUNC = 12,
  KVMGDB_BTF_FUNC_PROTO = 13,
  KVMGDB_BTF_VAR = 14,
  KVMGDB_BTF_DATASEC = 15,
  KVMGDB_BTF_FLOAT = 16,
  KVMGDB_BTF_DECL_TAG = 17,
  KVMGDB_BTF_TYPE_TAG = 18,
  KVMGDB_BTF_ENUM64 = 19,
};

struct kvmgdb_btf_type {
  uint32_t id;
  int kind; /* enum kvmgdb_btf_kind */
  const char *name;
  uint32_t size; /* bytes: INT, STRUCT, UNION, ENUM, ENUM64, DATASEC, FLOAT */
  uint32_t
      target; /* type that it refers to: of the others; of ARRAY its element */
  uint32_t count; /* members, values, parameters, variables, array elements */
  int kind_flag;
  /* INT */
  int is_signed; /* also ENUM, ENUM64 */
  int is_char;
  int is_bool;
  uint32_t bits;
  uint32_t bit_offset;
  /* FUNC and VAR: linkage; DECL_TAG: component index, -1 for the whole */
  int32_t linkage;
};

/* A member of a STRUCT or UNION, a parameter of a FUNC_PROTO, or a variable of
 * a DATASEC. */
struct kvmgdb_btf_member {
  const char *name;
  uint32_t type;
  uint64_t bit_offset; /* from the start of the type that was asked about */
  uint32_t bits;       /* of a bit field; 0 for a member that is none */
  uint32_t size;       /* bytes, of a variable of a DATASEC */
};

struct kvmgdb_btf_value {
  const char *name;
  int64_t value; /* the same 64 bits where the enumeration is unsigned */
};

/*
 * `base` is the kernel's BTF for the split BTF of a module, else NULL; it must
 * live as long. All of `data` is checked that can be without following
 * references. Nobody knows how long a type of a kind is that is not known: the
 * table ends before it, see kvmgdb_btf_unknown_kind, and cannot be a base.
 */
enum kvmgdb_status kvmgdb_btf_create(const void *data, size_t length,
                                     const struct kvmgdb_btf *base,
                                     struct kvmgdb_btf **out,
                                     struct kvmgdb_error *error);
void kvmgdb_btf_destroy(struct kvmgdb_btf *btf);

/* The kind of type that a newer kernel has and that is not known here; 0: none.
 */
uint32_t kvmgdb_btf_unknown_kind(const struct kvmgdb_btf *btf);

/* One above the highest type ID, and the lowest that is not of the base. */
uint32_t kvmgdb_btf_end(const struct kvmgdb_btf *btf);
uint32_t kvmgdb_btf_start(const struct kvmgdb_btf *btf);

enum kvmgdb_status kvmgdb_btf_type(const struct kvmgdb_btf *btf, uint32_t id,
                                   struct kvmgdb_btf_type *type,
                                   struct kvmgdb_error *error);

/*
 * The first type of that name whose kind has its bit (1 << kind) in `kinds`,
 * those of a module before those of its base.
 */
enum kvmgdb_status kvmgdb_btf_find(const struct kvmgdb_btf *btf,
                                   const char *name, uint32_t kinds,
                                   uint32_t *id, struct kvmgdb_error *error);

/* What is behind typedefs, qualifiers and type tags. */
enum kvmgdb_status kvmgdb_btf_strip(const struct kvmgdb_btf *btf, uint32_t id,
                                    struct kvmgdb_btf_type *type,
                                    struct kvmgdb_error *error);

/* Bytes that a type takes; MALFORMED for one that has no size. */
enum kvmgdb_status kvmgdb_btf_size(const struct kvmgdb_btf *btf, uint32_t id,
                                   uint64_t *size, struct kvmgdb_error *error);

enum kvmgdb_status kvmgdb_btf_member(const struct kvmgdb_btf *btf, uint32_t id,
                                     uint32_t index,
                                     struct kvmgdb_btf_member *member,
                                     struct kvmgdb_error *error);

/*
 * The member of that name of a STRUCT or UNION (or what stands for one), also
 * inside anonymous members; bit_offset counts from the outermost.
 */
enum kvmgdb_status kvmgdb_btf_find_member(const struct kvmgdb_btf *btf,
                                          uint32_t id, const char *name,
                                          struct kvmgdb_btf_member *member,
                                          struct kvmgdb_error *error);

enum kvmgdb_status kvmgdb_btf_value(const struct kvmgdb_btf *btf, uint32_t id,
                                    uint32_t index,
                                    struct kvmgdb_btf_value *value,
                                    struct kvmgdb_error *error);

/* ---- unwinding (arch/x86/kernel/unwind_orc.c) --------------------------- */

struct kvmgdb_unwinder;

/* Where the fields of struct orc_entry lie, in bits; 0 bits: not there. */
struct kvmgdb_orc_field {
  uint32_t bit_offset;
  uint32_t bits;
};

enum kvmgdb_orc_types {
  KVMGDB_ORC_TYPES_CALL_FIRST = 1,      /* 0 call, 1 regs, 2 partial regs */
  KVMGDB_ORC_TYPES_UNDEFINED_FIRST = 2, /* 0 undefined, 1 end, 2 call, ... */
};

enum kvmgdb_orc_registers {
  KVMGDB_ORC_REGISTERS_DETECT = 0, /* by the most frequent one */
  KVMGDB_ORC_REGISTERS_SP5 = 1, /* PREV_SP=1 DX DI BP SP=5 R10 R13 BPI SPI=9 */
  KVMGDB_ORC_REGISTERS_SP3 = 2, /* AX=1 DX SP=3 BP DI R10 R13 PREV_SP=8 SPI */
};

struct kvmgdb_orc_layout {
  uint32_t entry_size; /* bytes */
  struct kvmgdb_orc_field sp_offset;
  struct kvmgdb_orc_field bp_offset;
  struct kvmgdb_orc_field sp_reg;
  struct kvmgdb_orc_field bp_reg;
  struct kvmgdb_orc_field type;
  struct kvmgdb_orc_field end;    /* where types are CALL_FIRST */
  struct kvmgdb_orc_field signal; /* may be missing */
  int types;                      /* enum kvmgdb_orc_types */
  int registers;                  /* enum kvmgdb_orc_registers */
};

enum kvmgdb_status kvmgdb_unwinder_create(struct kvmgdb_unwinder **out,
                                          struct kvmgdb_error *error);
void kvmgdb_unwinder_destroy(struct kvmgdb_unwinder *unwinder);

/*
 * The table for code in [start, end): `count` place-relative addresses whose
 * first lies at `ip_address`, and as many entries. Out of order, they are put
 * into it. layout->registers is filled in where it was DETECT. Ranges must not
 * overlap (INVALID, os_error EEXIST).
 */
enum kvmgdb_status kvmgdb_unwinder_add(struct kvmgdb_unwinder *unwinder,
                                       uint64_t start, uint64_t end,
                                       uint64_t ip_address, const void *ips,
                                       const void *entries, size_t count,
                                       struct kvmgdb_orc_layout *layout,
                                       struct kvmgdb_error *error);

/* Code that its table does not describe, or that has none. */
enum kvmgdb_code {
  /* Jumps on to where it was told to, by a return of its own perhaps
     (retpolines): the caller's address is on top of the stack. */
  KVMGDB_CODE_THUNK = 1,
  /* Between SYSCALL or SYSRET and the task's stack: cx is user mode's ip. */
  KVMGDB_CODE_SYSCALL = 2,
  /* To and from user mode by an interrupt's frame, which is close above the
     stack pointer, or where di points while it is copied. */
  KVMGDB_CODE_IRET = 3,
  /* A copy of other code, whose rules hold (trampolines of ftrace). */
  KVMGDB_CODE_COPY = 4,
  /* Calls into itself and drops what that pushes (FILL_RETURN_BUFFER), which
     its rules do not tell, and may have rules of another variant of it. */
  KVMGDB_CODE_CALLS_ITSELF = 5,
};

/*
 * Says what the code in [start, end) is, where no rule is known for it;
 * `detail` is what a COPY is a copy of, and of CALLS_ITSELF how many bytes
 * above the stack pointer its caller's frame begins but for those calls (an
 * int16_t); else 0. Ranges must not overlap (INVALID, os_error EEXIST).
 */
enum kvmgdb_status kvmgdb_unwinder_mark(struct kvmgdb_unwinder *unwinder,
                                        uint64_t start, uint64_t end,
                                        enum kvmgdb_code code, uint64_t detail,
                                        struct kvmgdb_error *error);

/* A copy of `length` bytes of guest memory from `address` on. */
struct kvmgdb_stack {
  uint64_t address;
  const void *data;
  size_t length;
};

/* The registers that unwinding needs, as bits of `known` in this order. */
struct kvmgdb_unwind_registers {
  uint64_t ip, sp, bp, ax, dx, di, r10, r13, cx;
  uint32_t known;
};

/* How a frame was found. */
enum kvmgdb_frame_source {
  KVMGDB_FRAME_REGISTERS = 1,      /* the registers that were given */
  KVMGDB_FRAME_ORC = 2,            /* a return address, by ORC */
  KVMGDB_FRAME_ENTRY = 3,          /* registers saved at an entry, by ORC */
  KVMGDB_FRAME_POINTER = 4,        /* a return address, by frame pointer */
  KVMGDB_FRAME_USER_REGISTERS = 5, /* user mode's registers, at an entry */
  KVMGDB_FRAME_STACK_TOP = 6, /* the address on top of the stack, in a thunk or
                                 after a call of nothing */
};

struct kvmgdb_frame {
  uint64_t ip;
  uint64_t sp; /* when the frame is returned to; 0: not known (user mode) */
  uint64_t bp;
  int source;   /* enum kvmgdb_frame_source */
  int is_exact; /* ip is an instruction that was interrupted or is to run
                   next, not one after a call */
  int bp_known;
  uint64_t registers; /* address of the saved struct pt_regs, or 0 */
};

/* Why there are no more frames. */
enum kvmgdb_unwind_end {
  KVMGDB_UNWIND_COMPLETE = 1,    /* the table says that the stack ends here, or
                                    a chain of frame pointers has its end */
  KVMGDB_UNWIND_USER = 2,        /* the kernel was entered from user mode */
  KVMGDB_UNWIND_NEED_STACK = 3,  /* `address` lies in no copy */
  KVMGDB_UNWIND_NO_TABLE = 4,    /* nothing tells how `address` is unwound */
  KVMGDB_UNWIND_UNDEFINED = 5,   /* the table has no rule for `address` */
  KVMGDB_UNWIND_NO_REGISTER = 6, /* a rule needs a register that is lost */
  KVMGDB_UNWIND_LOOP = 7,        /* the stack did not get shorter */
  KVMGDB_UNWIND_FULL = 8,        /* there are as many frames as room */
  KVMGDB_UNWIND_NO_ENTRY = 9,    /* no registers of interrupted code lie where
                                    the rule for `address` has them */
};

struct kvmgdb_unwind_result {
  size_t count;     /* frames */
  int end;          /* enum kvmgdb_unwind_end */
  uint64_t address; /* as above; of the instruction or of the stack */
};

/* Go on behind the entry from user mode. */
#define KVMGDB_UNWIND_USER_FRAMES 1
/* The first ip is a return address. */
#define KVMGDB_UNWIND_FROM_CALL 2

/*
 * The frames from `registers` on: kernel frames by the tables, or by frame
 * pointers where no table knows the code and a pointer is at hand. With `flags`
 * KVMGDB_UNWIND_USER_FRAMES those of user mode follow, by frame pointers.
 * NEED_STACK asks for a copy of the stack that holds result->address: give it,
 * and call again.
 */
enum kvmgdb_status
kvmgdb_unwind(const struct kvmgdb_unwinder *unwinder,
              const struct kvmgdb_unwind_registers *registers,
              const struct kvmgdb_stack *stacks, size_t stack_count, int flags,
              struct kvmgdb_frame *frames, size_t capacity,
              struct kvmgdb_unwind_result *result, struct kvmgdb_error *error);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
