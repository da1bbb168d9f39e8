/*
 * The compressed symbol table of a kernel image, found by its structure
 * (scripts/kallsyms.c writes it, kernel/kallsyms.c reads it).
 *
 * Every name is a length and that many bytes, each the number of a token;
 * `markers` says where each 256th name begins. What is certain is searched for
 * first: the tokens of the ten digits, which stand for themselves; the rest
 * follows backwards from there, each step confirmed by the next.
 */
#include <stdbool.h>
#include <string.h>

#include "../error.h"
#include "symbols.h"

#define TOKENS 256
#define MARKER_STEP 256
/* KSYM_NAME_LEN is 128 or, since 6.1, 512. */
#define MAX_NAME 512
#define MIN_SYMBOLS 256
/* A name's length and tokens; and a name has a type and a letter at least. */
#define MAX_NAME_STEP ((uint32_t)MARKER_STEP * 300)
#define MIN_NAME_STEP ((uint32_t)MARKER_STEP * 2)
/* seqs_of_names (3 bytes a symbol) may lie between markers and tokens. */
#define MAX_MARKERS_DISTANCE (3 * MAX_SYMBOLS + 8 * MAX_SYMBOLS / 256)
/* Bytes of names that all candidates together may cost. */
#define WALK_BUDGET (UINT64_C(256) << 20)
/* The part of the address space that a kernel's image may take. */
#define KERNEL_SIZE (UINT64_C(1) << 30)
/* How many addresses in 1024 may be out of order or outside the image. */
#define TOLERATED 32

struct search {
  const uint8_t *image;
  size_t length;
  uint64_t address; /* of the image */
  uint64_t base;    /* of the kernel */
  uint64_t budget;
  size_t marker_size; /* 4; 8 until 4.19 */
  struct kvmgdb_kallsyms found;
  uint16_t token_offset[TOKENS];
};

static uint32_t read_u32(const uint8_t *from) {
  uint32_t value;
  memcpy(&value, from, sizeof(value));
  return value;
}

static uint64_t read_u64(const uint8_t *from) {
  uint64_t value;
  memcpy(&value, from, sizeof(value));
  return value;
}

static size_t align(size_t offset, size_t alignment) {
  return (offset + alignment - 1) & ~(alignment - 1);
}

/* ---- tokens ------------------------------------------------------------ */

/* The place behind a token's text; 0 where it has no end. */
static size_t token_end(const struct search *search, size_t at) {
  size_t limit =
      search->length - at < MAX_NAME ? search->length - at : MAX_NAME;
  const uint8_t *end = memchr(search->image + at, 0, limit);
  return end ? (size_t)(end - search->image) + 1 : 0;
}

/*
 * `digits` is where token '0' begins. token_index, behind the table, has the
 * offsets of all tokens, and so tells where the table begins; what stands
 * before that need not differ from a token.
 */
static bool read_token_index(struct search *search, size_t digits,
                             size_t index) {
  const size_t size = sizeof(search->token_offset);
  if (index > search->length || search->length - index < size)
    return false;
  memcpy(search->token_offset, search->image + index, size);
  if (search->token_offset[0] != 0 || search->token_offset['0'] > digits)
    return false;
  size_t table = digits - search->token_offset['0'];
  size_t at = table;
  for (int token = 0; token < TOKENS; token++) {
    if (at - table != search->token_offset[token])
      return false;
    at = token_end(search, at);
    if (at == 0 || at > index)
      return false;
  }
  search->found.token_table = table;
  search->found.token_index = index;
  return true;
}

static bool find_token_table(struct search *search, size_t digits) {
  size_t end = digits;
  for (int token = '0'; token < TOKENS; token++)
    if (!(end = token_end(search, end)))
      return false;
  return read_token_index(search, digits, align(end, 4)) ||
         read_token_index(search, digits, align(end, 8));
}

static bool next_tokens(struct search *search, size_t *from) {
  static const uint8_t digits[] =
      "0\0001\0002\0003\0004\0005\0006\0007\0008\0009";
  while (*from < search->length) {
    const uint8_t *match = memmem(search->image + *from, search->length - *from,
                                  digits, sizeof(digits));
    if (!match)
      return false;
    size_t at = (size_t)(match - search->image);
    *from = at + 1;
    if (find_token_table(search, at))
      return true;
  }
  return false;
}

/* ---- names ------------------------------------------------------------- */

/*
 * The number of tokens of the name at *at, which moves behind the number.
 * Lengths of 128 and more take two bytes (since 6.1; before, none was so long).
 */
static bool read_length(const struct search *search, size_t *at, size_t end,
                        size_t *tokens) {
  if (*at >= end)
    return false;
  *tokens = search->image[(*at)++];
  if (*tokens & 0x80) {
    if (*at >= end)
      return false;
    *tokens = (*tokens & 0x7f) | (size_t)search->image[(*at)++] << 7;
  }
  return *tokens <= end - *at;
}

static uint64_t read_marker(const struct search *search, size_t markers,
                            size_t index) {
  const uint8_t *at = search->image + markers + search->marker_size * index;
  return search->marker_size == 8 ? read_u64(at) : read_u32(at);
}

/* Whether `names` holds `count` names that agree with the markers after it. */
static bool confirm_names(struct search *search, size_t names, size_t count,
                          size_t markers) {
  size_t at = names;
  for (size_t i = 0; i < count; i++) {
    if (i % MARKER_STEP == 0 &&
        read_marker(search, markers, i / MARKER_STEP) != at - names)
      return false;
    size_t tokens;
    if (!read_length(search, &at, markers, &tokens) || tokens == 0)
      return false;
    at += tokens;
  }
  if (search->budget < at - names)
    return false;
  search->budget -= at - names;
  return align(at, 4) == markers || align(at, 8) == markers;
}

/* The length of the run of offsets, each plausibly above the one before. */
static size_t marker_run(const struct search *search, size_t markers,
                         size_t end) {
  size_t run = 1;
  for (uint64_t last = 0; markers + search->marker_size * (run + 1) <= end;
       run++) {
    uint64_t marker = read_marker(search, markers, run);
    if (marker <= last || marker - last < MIN_NAME_STEP ||
        marker - last > MAX_NAME_STEP)
      break;
    last = marker;
  }
  return run;
}

/* num_syms stands before the names, padded to their alignment. */
static bool find_names(struct search *search, size_t markers, size_t run) {
  uint64_t last = read_marker(search, markers, run - 1);
  if (markers < last)
    return false;
  size_t highest = (markers - (size_t)last) & ~(size_t)3;
  size_t lowest = highest > MAX_NAME_STEP ? highest - MAX_NAME_STEP : 8;
  /* What follows the markers may look like one or two more. */
  highest = highest + (size_t)2 * MAX_NAME_STEP < markers
                ? highest + (size_t)2 * MAX_NAME_STEP
                : markers;
  for (size_t names = highest; names >= lowest && names >= 8; names -= 4)
    for (size_t padding = 0; padding <= 4; padding += 4) {
      uint32_t count = read_u32(search->image + names - 4 - padding);
      size_t needed = ((size_t)count + MARKER_STEP - 1) / MARKER_STEP;
      if (count < MIN_SYMBOLS || count > MAX_SYMBOLS || needed > run ||
          needed + 2 < run ||
          (padding && read_u32(search->image + names - 4) != 0))
        continue;
      if (confirm_names(search, names, count, markers)) {
        search->found.num_syms = count;
        search->found.names = names;
        search->found.markers = markers;
        return true;
      }
      if (search->budget == 0)
        return false;
    }
  return false;
}

static bool find_markers(struct search *search) {
  size_t end = search->found.token_table & ~(size_t)3;
  size_t lowest = end > MAX_MARKERS_DISTANCE ? end - MAX_MARKERS_DISTANCE : 0;
  lowest = align(lowest, 4);
  for (size_t at = end; at >= lowest + 8;) {
    at -= 4;
    if (read_u32(search->image + at) != 0)
      continue;
    for (search->marker_size = 4; search->marker_size <= 8;
         search->marker_size += 4) {
      size_t run = marker_run(search, at, end);
      if (run >= MIN_SYMBOLS / MARKER_STEP + 1 && find_names(search, at, run))
        return true;
    }
  }
  return false;
}

/* ---- addresses --------------------------------------------------------- */

static uint64_t address_of(const struct search *search, size_t index) {
  const struct kvmgdb_kallsyms *found = &search->found;
  size_t at = (size_t)found->offsets + 4 * index;
  int32_t offset = (int32_t)read_u32(search->image + at);
  switch (found->encoding) {
  case KVMGDB_KALLSYMS_ABSOLUTE_PERCPU:
    return offset >= 0 ? (uint64_t)offset
                       : found->relative_base - 1 - (uint64_t)(int64_t)offset;
  case KVMGDB_KALLSYMS_BASE_RELATIVE:
    return found->relative_base + (uint32_t)offset;
  default:
    return search->address + at + (uint64_t)(int64_t)offset;
  }
}

/* Addresses rise, and hardly any but per-CPU ones lie outside the kernel's
 * part of the address space. */
static bool plausible_addresses(const struct search *search) {
  size_t count = (size_t)search->found.num_syms;
  size_t disorder = 0, kernel = 0;
  uint64_t last = 0;
  for (size_t i = 0; i < count; i++) {
    uint64_t address = address_of(search, i);
    disorder += address < last;
    last = address;
    kernel += address >= search->base && address - search->base <= KERNEL_SIZE;
  }
  return disorder <= count / 1024 * TOLERATED && kernel >= count / 2;
}

static bool try_offsets(struct search *search, size_t offsets, int encoding,
                        size_t base_at) {
  uint64_t size = 4 * search->found.num_syms;
  if (offsets % 4 || offsets > search->length ||
      search->length - offsets < size)
    return false;
  search->found.offsets = offsets;
  search->found.encoding = encoding;
  search->found.relative_base = 0;
  if (encoding != KVMGDB_KALLSYMS_PLACE_RELATIVE) {
    if (base_at > search->length || search->length - base_at < 8)
      return false;
    search->found.relative_base = read_u64(search->image + base_at);
    if (search->found.relative_base < search->base ||
        search->found.relative_base - search->base >= KERNEL_SIZE)
      return false;
  }
  return plausible_addresses(search);
}

/*
 * Offsets and relative_base precede num_syms, or (6.4) follow token_index. Both
 * are aligned to 8 bytes where there is a base; num_syms takes 4 bytes, or 8
 * with its padding.
 */
static bool find_offsets(struct search *search) {
  static const int based[] = {KVMGDB_KALLSYMS_ABSOLUTE_PERCPU,
                              KVMGDB_KALLSYMS_BASE_RELATIVE};
  size_t size = 4 * (size_t)search->found.num_syms;
  size_t behind = (size_t)search->found.token_index + 2 * TOKENS;
  for (size_t i = 0; i < 2; i++) {
    size_t start = align(behind, 8);
    if (try_offsets(search, start, based[i], align(start + size, 8)))
      return true;
    for (size_t width = 4; width <= 8; width += 4) {
      size_t base_at = (size_t)search->found.names - width - 8;
      if (search->found.names >= size + width + 16 &&
          try_offsets(search, (base_at - size) & ~(size_t)7, based[i], base_at))
        return true;
    }
  }
  return try_offsets(search, align(behind, 4), KVMGDB_KALLSYMS_PLACE_RELATIVE,
                     0) ||
         try_offsets(search, align(behind, 8), KVMGDB_KALLSYMS_PLACE_RELATIVE,
                     0);
}

/* ---- decoding ---------------------------------------------------------- */

/* Type and name of `tokens` tokens; the length of the name, 0 for a bad one. */
static size_t expand(const struct search *search, const uint8_t *token,
                     size_t tokens, char *out) {
  const char *table = (const char *)search->image + search->found.token_table;
  size_t length = 0;
  for (size_t i = 0; i < tokens; i++)
    for (const char *text = table + search->token_offset[token[i]]; *text;
         text++) {
      if (length > MAX_NAME)
        return 0;
      out[length++] = *text;
    }
  if (length < 2)
    return 0;
  out[length] = '\0';
  return length - 1;
}

static enum kvmgdb_status decode(const struct search *search,
                                 struct kvmgdb_symbols *symbols,
                                 struct kvmgdb_error *error) {
  size_t at = (size_t)search->found.names;
  for (size_t i = 0; i < search->found.num_syms; i++) {
    size_t tokens;
    if (!read_length(search, &at, (size_t)search->found.markers, &tokens))
      return error_set(error, KVMGDB_ERR_MALFORMED, 0, at);
    char *name = symbols_reserve(symbols, MAX_NAME + 1);
    if (!name)
      return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, at);
    size_t length = expand(search, search->image + at, tokens, name);
    if (length == 0)
      return error_set(error, KVMGDB_ERR_MALFORMED, 0, at);
    symbols_commit(symbols, address_of(search, i), length);
    at += tokens;
  }
  return symbols_finish(symbols, error);
}

enum kvmgdb_status kvmgdb_symbols_from_kallsyms(const void *image,
                                                size_t length, uint64_t address,
                                                uint64_t base,
                                                struct kvmgdb_kallsyms *found,
                                                struct kvmgdb_symbols **out,
                                                struct kvmgdb_error *error) {
  if (!image || !out || address + length < address)
    return error_set(error, KVMGDB_ERR_INVALID, 0, address);
  struct search search = {.image = image,
                          .length = length,
                          .address = address,
                          .base = base,
                          .budget = WALK_BUDGET};
  for (size_t from = 0; next_tokens(&search, &from);) {
    if (!find_markers(&search) || !find_offsets(&search))
      continue;
    SCOPED_SYMBOLS struct kvmgdb_symbols *symbols = NULL;
    enum kvmgdb_status status =
        symbols_create((size_t)search.found.num_syms, &symbols, error);
    if (status == KVMGDB_OK)
      status = decode(&search, symbols, error);
    if (status == KVMGDB_ERR_MALFORMED)
      continue;
    if (status != KVMGDB_OK)
      return status;
    *out = symbols;
    symbols = NULL;
    if (found)
      *found = search.found;
    return KVMGDB_OK;
  }
  return error_set(error, KVMGDB_ERR_NOT_FOUND, 0, 0);
}
