/* The symbols that the kernel keeps of a module: struct mod_kallsyms. */
#include <elf.h>
#include <string.h>

#include "../error.h"
#include "symbols.h"

/* Of a name in `strings`, without its end; 0 where it has none there. */
static size_t name_length(const char *strings, size_t strings_length,
                          uint32_t offset) {
  if (offset >= strings_length)
    return 0;
  return strnlen(strings + offset, strings_length - offset);
}

enum kvmgdb_status kvmgdb_symbols_from_elf(const void *symtab, size_t count,
                                           const void *strings,
                                           size_t strings_length,
                                           const char *types,
                                           struct kvmgdb_symbols **out,
                                           struct kvmgdb_error *error) {
  if ((!symtab && count) || (!strings && strings_length) || !out ||
      count > MAX_SYMBOLS)
    return error_set(error, KVMGDB_ERR_INVALID, 0, count);
  SCOPED_SYMBOLS struct kvmgdb_symbols *symbols = NULL;
  enum kvmgdb_status status = symbols_create(count, &symbols, error);
  if (status != KVMGDB_OK)
    return status;
  for (size_t i = 0; i < count; i++) {
    Elf64_Sym symbol;
    memcpy(&symbol, (const char *)symtab + i * sizeof(symbol), sizeof(symbol));
    size_t length = name_length(strings, strings_length, symbol.st_name);
    if (length == 0 || symbol.st_shndx == SHN_UNDEF)
      continue;
    if (symbol.st_name + length == strings_length)
      return error_set(error, KVMGDB_ERR_MALFORMED, 0, symbol.st_name);
    char *name = symbols_reserve(symbols, length);
    if (!name)
      return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
    name[0] = types && types[i] ? types[i] : '?';
    memcpy(name + 1, (const char *)strings + symbol.st_name, length + 1);
    symbols_commit(symbols, symbol.st_value, length);
  }
  status = symbols_finish(symbols, error);
  if (status != KVMGDB_OK)
    return status;
  *out = symbols;
  symbols = NULL;
  return KVMGDB_OK;
}
