/* Functions: BTF knows their types, the symbol table where they are. */
#include "functions.h"

#include <stdlib.h>

#include "../cleanup.h"
#include "../error.h"

#define FUNCTIONS_PER_UNIT 256
#define MAX_FUNCTION_SIZE (UINT64_C(1) << 24)
/* Symbols at one place that are looked through for the next. */
#define MAX_ALIASES 256

struct function {
  uint64_t address;
  uint32_t size;
  uint32_t id;   /* of a FUNC; 0 for one whose type is not known, */
  uint32_t name; /* and then its name in .debug_str */
  bool global;
};

static int compare_addresses(const void *left, const void *right) {
  const struct function *a = left, *b = right;
  return a->address < b->address ? -1 : a->address > b->address;
}

static int compare_functions(const void *left, const void *right) {
  const struct function *a = left, *b = right;
  if (a->address != b->address)
    return a->address < b->address ? -1 : 1;
  return a->id < b->id ? -1 : a->id > b->id;
}

/* Fills in where the function of a symbol of code lies. */
static bool place(const struct kvmgdb_debug *debug,
                  const struct kvmgdb_symbols *symbols,
                  const struct kvmgdb_symbol *symbol,
                  struct function *function) {
  int area = area_of(debug, symbol->address);
  if (area < 0 || !debug->areas[area].executable)
    return false;
  uint64_t end = debug->areas[area].end;
  size_t next = symbol->index + 1;
  for (int step = 0; next < symbols->count && step < MAX_ALIASES &&
                     symbols->entries[next].address == symbol->address;
       step++)
    next++;
  if (next < symbols->count && symbols->entries[next].address < end)
    end = symbols->entries[next].address;
  if (end <= symbol->address || end - symbol->address > MAX_FUNCTION_SIZE)
    return false;
  *function =
      (struct function){.address = symbol->address,
                        .size = (uint32_t)(end - symbol->address),
                        .global = symbol->type >= 'A' && symbol->type <= 'Z'};
  return true;
}

/* A name that occurs twice says nothing: BTF does not tell which it means. */
static bool locate(const struct kvmgdb_debug *debug,
                   const struct kvmgdb_symbols *symbols, const char *name,
                   struct function *function) {
  struct kvmgdb_symbol symbol, other;
  size_t index = 0;
  return *name &&
         kvmgdb_symbols_named(symbols, name, &index, &symbol, NULL) ==
             KVMGDB_OK &&
         kvmgdb_symbols_named(symbols, name, &index, &other, NULL) !=
             KVMGDB_OK &&
         place(debug, symbols, &symbol, function);
}

static size_t sort(struct function *functions, size_t count) {
  size_t kept = 0;
  qsort(functions, count, sizeof(*functions), compare_functions);
  for (size_t i = 0; i < count; i++)
    if (!kept || functions[kept - 1].address != functions[i].address)
      functions[kept++] = functions[i];
  return kept;
}

/* Functions that must be there, also those that BTF does not know. */
static size_t add_noted(struct info *info, const struct kvmgdb_debug *debug,
                        const struct kvmgdb_symbols *symbols,
                        struct function *functions, size_t known) {
  size_t count = known;
  for (size_t i = 0; i < debug->noted_count; i++) {
    struct kvmgdb_symbol symbol;
    if (kvmgdb_symbols_at(symbols, debug->noted[i].start, &symbol, NULL) !=
            KVMGDB_OK ||
        !place(debug, symbols, &symbol, &functions[count]) ||
        bsearch(&functions[count], functions, known, sizeof(*functions),
                compare_addresses))
      continue;
    functions[count++].name = info_add_text(info, symbol.name);
  }
  return sort(functions, count);
}

/* By rising address; of several names of one place the first in BTF. */
static size_t collect(struct info *info, const struct kvmgdb_debug *debug,
                      const struct kvmgdb_symbols *symbols,
                      struct function *functions) {
  size_t count = 0;
  for (uint32_t id = info->btf->start; id < info->btf->end; id++) {
    struct btf_raw raw;
    if (!btf_find_raw(info->btf, id, &raw) || btf_kind(&raw) != KVMGDB_BTF_FUNC)
      continue;
    if (locate(debug, symbols, btf_string(info->btf, raw.name),
               &functions[count]))
      functions[count++].id = id;
  }
  return add_noted(info, debug, symbols, functions, sort(functions, count));
}

/* ---- parameters ------------------------------------------------------------
 */

/* psABI for x86-64, section 3.2.3: where arguments of class INTEGER are. */
static const uint8_t argument_registers[] = {DW_RDI, DW_RSI, DW_RDX,
                                             DW_RCX, DW_R8,  DW_R9};
#define ARGUMENT_REGISTERS sizeof(argument_registers)

static bool is_integer_class(const struct info *info, uint32_t id) {
  struct kvmgdb_btf_type type;
  if (kvmgdb_btf_strip(info->btf, id, &type, NULL) != KVMGDB_OK)
    return false;
  return type.kind == KVMGDB_BTF_PTR ||
         ((type.kind == KVMGDB_BTF_INT || type.kind == KVMGDB_BTF_ENUM ||
           type.kind == KVMGDB_BTF_ENUM64) &&
          type.size <= 8);
}

/* How many parameters are in registers at the function's first instruction. */
static uint32_t count_in_registers(const struct info *info,
                                   uint32_t prototype) {
  struct btf_raw raw;
  const char *extra = btf_find_raw(info->btf, prototype, &raw);
  uint32_t count = 0;
  /* A structure that is returned may take the first register. */
  if (extra && raw.size_or_type && !is_integer_class(info, raw.size_or_type))
    return 0;
  while (extra && count < btf_count(&raw) && count < ARGUMENT_REGISTERS) {
    uint32_t words[2]; /* name, type */
    memcpy(words, extra + count * sizeof(words), sizeof(words));
    if (!is_integer_class(info, words[1]))
      break;
    count++;
  }
  return count;
}

/* Section 2.6.2 of DWARF 5: there, and nowhere else. */
static void put_location_lists(struct buffer *out, uint64_t offset,
                               uint32_t count, uint32_t places[]) {
  for (uint32_t i = 0; i < count; i++) {
    places[i] = (uint32_t)out->length;
    put_u8(out, DW_LLE_offset_pair);
    put_uleb(out, offset);
    put_uleb(out, offset + 1);
    put_uleb(out, 1);
    put_u8(out, (uint8_t)(DW_OP_reg0 + argument_registers[i]));
    put_u8(out, DW_LLE_end_of_list);
  }
}

static void put_function(struct info *info, struct buffer *locations,
                         const struct function *function, uint64_t low) {
  if (function->id == 0) {
    put_uleb(info->out, ABBREV_FUNCTION_UNTYPED);
    put_u32(info->out, function->name);
    put_u64(info->out, function->address);
    put_u32(info->out, function->size);
    return;
  }
  struct btf_raw raw, prototype;
  if (!btf_find_raw(info->btf, function->id, &raw) ||
      !btf_find_raw(info->btf, raw.size_or_type, &prototype) ||
      btf_kind(&prototype) != KVMGDB_BTF_FUNC_PROTO)
    return;
  uint32_t type = info_put_shape(
      info, function->global ? ABBREV_FUNCTION : ABBREV_FUNCTION_STATIC,
      prototype.size_or_type);
  put_u32(info->out, info_string(info, raw.name));
  put_u64(info->out, function->address);
  put_u32(info->out, function->size);
  if (type)
    info_refer(info, type);
  uint32_t places[ARGUMENT_REGISTERS], count = 0;
  if (function->global || info->static_calls_follow_abi)
    count = count_in_registers(info, raw.size_or_type);
  put_location_lists(locations, function->address - low, count, places);
  info_put_parameters(info, raw.size_or_type, places, count);
}

/* How many from `functions` on go into one unit: those of one area. */
static size_t unit_length(const struct kvmgdb_debug *debug,
                          const struct function *functions, size_t count) {
  uint64_t end = debug->areas[area_of(debug, functions->address)].end;
  size_t length = 1;
  while (length < count && length < FUNCTIONS_PER_UNIT &&
         functions[length].address < end)
    length++;
  return length;
}

/* Section 6.1.2 of DWARF 4: one range for one unit. */
static void put_range(struct buffer *out, size_t unit, uint64_t low,
                      uint64_t high) {
  put_u32(out, 2 + 4 + 1 + 1 + 4 + 2 * 16);
  put_u16(out, 2);
  put_u32(out, (uint32_t)unit);
  put_u8(out, 8);
  put_u8(out, 0);
  put_u32(out, 0); /* tuples are aligned to their size */
  put_u64(out, low);
  put_u64(out, high - low);
  put_u64(out, 0);
  put_u64(out, 0);
}

enum kvmgdb_status info_put_functions(struct info *info,
                                      struct kvmgdb_debug *debug,
                                      const struct kvmgdb_symbols *symbols,
                                      struct kvmgdb_error *error) {
  SCOPED_FREE struct function *functions = calloc(
      (size_t)info->btf->end + debug->noted_count + 1, sizeof(*functions));
  if (!functions)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  size_t count = collect(info, debug, symbols, functions);
  struct buffer *locations = &debug->sections[KVMGDB_DEBUG_LOCLISTS];
  put_u32(locations, 0);
  put_u16(locations, 5);
  put_u8(locations, 8);
  put_u8(locations, 0);
  put_u32(locations, 0); /* no table of offsets */
  for (size_t first = 0; first < count;) {
    size_t length = unit_length(debug, functions + first, count - first);
    const struct function *last = &functions[first + length - 1];
    uint64_t low = functions[first].address, high = last->address + last->size;
    put_range(&debug->sections[KVMGDB_DEBUG_ARANGES], info->out->length, low,
              high);
    unit_begin(info, low, high);
    for (size_t i = 0; i < length; i++)
      put_function(info, locations, &functions[first + i], low);
    unit_end(info);
    first += length;
  }
  buffer_patch_u32(locations, 0, (uint32_t)(locations->length - 4));
  return KVMGDB_OK;
}
