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
  KVMGDB_DEBUG_LOC = 6,
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

/*
 * Makes SYMTAB and STRTAB. A symbol outside of all areas, such as one of
 * per-CPU data that is an offset, becomes an absolute one, so that no address
 * is looked up as being its. *locals is how many entries come before the first
 * that is not local (sh_info). To be called after kvmgdb_debug_add_frames,
 * which may ask for symbols of its own.
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
