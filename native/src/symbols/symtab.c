/* The symbol table: Elf64_Sym, local ones first (elf(5)). */
#include <elf.h>
#include <string.h>

#include "../error.h"
#include "../linux/symbols.h"
#include "debug.h"

#define SECTIONS (1u << KVMGDB_DEBUG_SYMTAB | 1u << KVMGDB_DEBUG_STRTAB)

static bool is_weak(char type) { return strchr("wWvV", type) != NULL; }

/* crash(8) takes a symbol of per-CPU data for one only if nm(1) says "d" or
 * "V": a weak object, for those that are in no section. */
static unsigned char binding_of(int area, char type) {
  if (is_weak(type) || area < 0)
    return STB_WEAK;
  return type >= 'A' && type <= 'Z' ? STB_GLOBAL : STB_LOCAL;
}

/* Bytes to the next symbol at another address, no further than the area. *next
 * is at or below that symbol, and goes on with each call by rising index. */
static uint64_t size_of(const struct kvmgdb_symbols *symbols, size_t index,
                        size_t *next, uint64_t end) {
  uint64_t address = symbols->entries[index].address;
  if (*next <= index)
    *next = index + 1;
  while (*next < symbols->count && symbols->entries[*next].address == address)
    ++*next;
  if (*next < symbols->count && symbols->entries[*next].address < end)
    end = symbols->entries[*next].address;
  return end - address;
}

static Elf64_Sym make_symbol(const struct kvmgdb_debug *debug,
                             const struct kvmgdb_symbols *symbols, size_t index,
                             size_t *next, char type) {
  uint64_t address = symbols->entries[index].address;
  Elf64_Sym symbol = {.st_value = address, .st_shndx = SHN_ABS};
  int area = area_of(debug, address);
  unsigned char kind = STT_OBJECT;
  if (area >= 0) {
    symbol.st_shndx = (uint16_t)(area + 1);
    symbol.st_size = size_of(symbols, index, next, debug->areas[area].end);
    if (debug->areas[area].executable)
      kind = strchr("tTwW", type) ? STT_FUNC : STT_NOTYPE;
  }
  symbol.st_info = ELF64_ST_INFO(binding_of(area, type), kind);
  return symbol;
}

static void add_bound(struct kvmgdb_debug *debug,
                      const struct kvmgdb_symbols *symbols, bool local) {
  struct buffer *table = &debug->sections[KVMGDB_DEBUG_SYMTAB];
  struct buffer *strings = &debug->sections[KVMGDB_DEBUG_STRTAB];
  size_t next = 0;
  for (size_t i = 0; i < symbols->count; i++) {
    const char *name = symbols->names + symbols->entries[i].name;
    char type = *name++;
    int area = area_of(debug, symbols->entries[i].address);
    if ((binding_of(area, type) == STB_LOCAL) != local || !*name)
      continue;
    Elf64_Sym symbol = make_symbol(debug, symbols, i, &next, type);
    symbol.st_name = (uint32_t)strings->length;
    put_text(strings, name);
    buffer_put(table, &symbol, sizeof(symbol));
  }
}

/* See kvmgdb_debug_add_frames. */
static void add_switches(struct kvmgdb_debug *debug) {
  struct buffer *strings = &debug->sections[KVMGDB_DEBUG_STRTAB];
  uint32_t name = (uint32_t)strings->length;
  put_text(strings, "__morestack");
  for (size_t i = 0; i < debug->noted_count; i++) {
    const struct noted_code *code = &debug->noted[i];
    if (!code->switches)
      continue;
    Elf64_Sym symbol = {.st_name = name,
                        .st_info = ELF64_ST_INFO(STB_LOCAL, STT_FUNC),
                        .st_shndx = (uint16_t)(area_of(debug, code->start) + 1),
                        .st_value = code->start,
                        .st_size = code->end - code->start};
    buffer_put(&debug->sections[KVMGDB_DEBUG_SYMTAB], &symbol, sizeof(symbol));
  }
}

enum kvmgdb_status
kvmgdb_debug_add_symbols(struct kvmgdb_debug *debug,
                         const struct kvmgdb_symbols *symbols, uint32_t *locals,
                         struct kvmgdb_error *error) {
  if (!debug || !symbols || !locals)
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  struct buffer *table = &debug->sections[KVMGDB_DEBUG_SYMTAB];
  const Elf64_Sym none = {0};
  debug_reset(debug, SECTIONS);
  buffer_put(table, &none, sizeof(none));
  put_u8(&debug->sections[KVMGDB_DEBUG_STRTAB], 0);
  add_switches(debug);
  add_bound(debug, symbols, true);
  *locals = (uint32_t)(table->length / sizeof(Elf64_Sym));
  add_bound(debug, symbols, false);
  return debug_finish(debug, SECTIONS, error);
}
