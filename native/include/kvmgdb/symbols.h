/*
 * kvmgdb.symbols: the contents of a file from which a debugger learns what a
 * kernel or a module is made of: its symbols, DWARF 4 types and functions made
 * from BTF, and call frames made from ORC. The file itself (ELF) is put
 * together by the caller from the sections that are handed out here.
 *
 * The contract is that of kvmgdb.h and linux.h. What guest data can make a
 * section grow to is bounded: beyond that it is KVMGDB_ERR_MALFORMED. A call
 * that fails leaves the sections that it makes empty, and the others as they
 * are.
 */
#ifndef KVMGDB_SYMBOLS_H
#define KVMGDB_SYMBOLS_H

#include <kvmgdb/linux.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

struct kvmgdb_debug;

/* Part of the address space that the file describes: [start, end). */
struct kvmgdb_debug_area {
  uint64_t start;
  uint64_t end;
  int executable;
};

enum kvmgdb_debug_section {
  KVMGDB_DEBUG_SYMTAB = 0,
  KVMGDB_DEBUG_STRTAB = 1,
  KVMGDB_DEBUG_INFO = 2,
  KVMGDB_DEBUG_ABBREV = 3,
  KVMGDB_DEBUG_STR = 4,
  KVMGDB_DEBUG_ARANGES = 5,
  KVMGDB_DEBUG_LOCLISTS = 6,
  KVMGDB_DEBUG_FRAME = 7,
  KVMGDB_DEBUG_SECTIONS = 8,
};

/*
 * `areas` by rising address, without overlap, at most 64 (INVALID): symbols of
 * area i are given section i + 1.
 */
enum kvmgdb_status kvmgdb_debug_create(const struct kvmgdb_debug_area *areas,
                                       size_t count, struct kvmgdb_debug **out,
                                       struct kvmgdb_error *error);
void kvmgdb_debug_destroy(struct kvmgdb_debug *debug);

/* A section as made so far; it stays there until the next call that makes it,
 * or the end of `debug`. */
const void *kvmgdb_debug_section(const struct kvmgdb_debug *debug,
                                 enum kvmgdb_debug_section which,
                                 size_t *length);

/* What code in [start, end) is that the table has no rule for. */
enum kvmgdb_debug_rule_kind {
  /* Its return address lies `cfa_offset` - 8 bytes above the stack pointer. */
  KVMGDB_RULE_CALL = 0,
  KVMGDB_RULE_CALL_ALWAYS = 1, /* the same, also where the table has a rule */
  /* The table's rules hold, or where `cfa_offset` is not 0 that offset, except
     that they do not count the words that up to two calls within the code left
     on the stack. */
  KVMGDB_RULE_CALLS_ITSELF = 2,
  /* Entered by `syscall`, or about to leave by `sysret`: user mode's address is
     in rcx. */
  KVMGDB_RULE_SYSCALL = 3,
  /* Entered by an interrupt from user mode, or about to leave by `iret`: what
     the processor pushes lies at the stack pointer, or one or two words above,
     or it is being copied from where rdi points. */
  KVMGDB_RULE_IRET = 4,
};

struct kvmgdb_debug_rule {
  uint64_t start;
  uint64_t end;
  enum kvmgdb_debug_rule_kind kind;
  int16_t cfa_offset;
};

/*
 * Makes FRAME from those tables of the unwinder that lie in areas of code; the
 * first step. `rules` by rising address, without overlap. With `user_mode`,
 * the file says also that user mode is where a chain of frames ends: that is
 * for one file of several.
 *
 * Where a frame may lie on another stack than the one that it calls, GDB would
 * take the chain for broken, except below a function named "__morestack":
 * kvmgdb_debug_add_symbols gives such code that symbol, and
 * kvmgdb_debug_add_types a function of its real name, which is what is shown.
 */
enum kvmgdb_status kvmgdb_debug_add_frames(
    struct kvmgdb_debug *debug, const struct kvmgdb_unwinder *unwinder,
    const struct kvmgdb_symbols *symbols, const struct kvmgdb_debug_rule *rules,
    size_t rule_count, int user_mode, struct kvmgdb_error *error);

/*
 * A variable whose type the caller knows: BTF type `type`, or a pointer to it
 * (0 is void), or an array of either; `elements` 0 leaves its length open.
 */
struct kvmgdb_debug_variable {
  const char *name;
  uint64_t address;
  uint32_t type;
  int is_pointer;
  int is_array;
  uint32_t elements;
};

/* `table`: address of __per_cpu_offset[], which has `cpus` elements, or 0;
 * `start`: what the first byte of the section has as its symbol's value, which
 * for a module is where the kernel has put its copy of it. */
struct kvmgdb_debug_percpu {
  uint64_t table;
  uint64_t start;
  uint32_t cpus;
};

/*
 * Makes INFO, ABBREV, STR, ARANGES, LOCLISTS: the types of `btf` (not of its
 * base, which is another file), the functions that are in both `btf` and
 * `symbols`, under one name that occurs once, and variables. `percpu` may be
 * NULL. `producer` and `name` are what made the units, and of what. A type that
 * is referred to but not there, or that has no end, is an unspecified type
 * ("damaged type"). Parameters have a place only at the function's first
 * instruction: the registers of the ABI, which compilers may leave aside in
 * functions that are not global, unless `static_calls_follow_abi`.
 */
enum kvmgdb_status kvmgdb_debug_add_types(
    struct kvmgdb_debug *debug, const struct kvmgdb_btf *btf,
    const struct kvmgdb_symbols *symbols, const char *producer,
    const char *name, const struct kvmgdb_debug_variable *variables,
    size_t variable_count, const struct kvmgdb_debug_percpu *percpu,
    int static_calls_follow_abi, struct kvmgdb_error *error);

/*
 * Makes SYMTAB and STRTAB. A symbol outside of all areas, such as one of
 * per-CPU data that is an offset, becomes an absolute one, so that no address
 * is looked up as being its. *locals is how many entries come before the first
 * that is not local (sh_info). The last
 * step.
 */
enum kvmgdb_status
kvmgdb_debug_add_symbols(struct kvmgdb_debug *debug,
                         const struct kvmgdb_symbols *symbols, uint32_t *locals,
                         struct kvmgdb_error *error);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
