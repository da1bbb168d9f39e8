/*
 * .debug_frame from the unwind tables: one FDE for each symbol of code, or
 * several where the class of its frames changes.
 */
#include "frames.h"

#include <stdlib.h>

#include "../error.h"
#include "../linux/symbols.h"
#include "debug.h"
#include "dwarf.h"

#define SECTIONS (1u << KVMGDB_DEBUG_FRAME)

/* Code of 5.10 that calls on the interrupt stack, with the task's in rbp. */
#define CALL_ON_STACK "asm_call_"

struct frames {
  struct kvmgdb_debug *debug;
  struct buffer *out;
  const struct kvmgdb_symbols *symbols;
  const struct kvmgdb_debug_rule *rules; /* that stand in for the table's */
  size_t rule_count;
  uint32_t cies[FRAME_CLASSES][2];
};

/* One table in one area of code, read from its start on. */
struct cursor {
  const struct orc_table *table;
  size_t rule;   /* the last at or below `at`; table->count for none */
  size_t next;   /* the first above it */
  size_t symbol; /* the first symbol above `at` */
  size_t own;    /* the first of our rules that ends above `at` */
  uint64_t at;
  uint64_t end;
  struct orc_rule current;
  enum frame_class class;
  const struct kvmgdb_debug_rule *counted; /* that says that it calls itself */
};

/* Our rule for where the cursor is, instead of the table's; NULL for none. */
static const struct kvmgdb_debug_rule *own_rule(const struct frames *frames,
                                                const struct cursor *cursor) {
  const struct kvmgdb_debug_rule *own = frames->rules + cursor->own;
  const struct orc_rule *listed = cursor->rule < cursor->table->count
                                      ? &cursor->table->rules[cursor->rule]
                                      : NULL;
  if (cursor->own == frames->rule_count || own->start > cursor->at)
    return NULL;
  if (own->kind == KVMGDB_RULE_CALLS_ITSELF)
    return NULL;
  bool has_rule = listed && frame_class_of(listed) != FRAME_OUTER;
  return own->kind == KVMGDB_RULE_CALL_ALWAYS || !has_rule ? own : NULL;
}

static bool is_call(const struct kvmgdb_debug_rule *rule) {
  return rule->kind == KVMGDB_RULE_CALL ||
         rule->kind == KVMGDB_RULE_CALL_ALWAYS;
}

static void cursor_move(const struct frames *frames, struct cursor *cursor,
                        uint64_t at) {
  const struct orc_table *table = cursor->table;
  const struct kvmgdb_symbols *symbols = frames->symbols;
  cursor->at = at;
  while (cursor->next < table->count &&
         table->start + table->ips[cursor->next] <= at)
    cursor->rule = cursor->next++;
  while (cursor->symbol < symbols->count &&
         symbols->entries[cursor->symbol].address <= at)
    cursor->symbol++;
  while (cursor->own < frames->rule_count &&
         frames->rules[cursor->own].end <= at)
    cursor->own++;
  cursor->current = (struct orc_rule){.type = ORC_TYPE_UNDEFINED};
  if (cursor->rule < table->count)
    cursor->current = table->rules[cursor->rule];
  const struct kvmgdb_debug_rule *own = own_rule(frames, cursor);
  if (own && is_call(own))
    cursor->current = (struct orc_rule){.sp_offset = own->cfa_offset,
                                        .sp_register = ORC_SP,
                                        .type = ORC_TYPE_CALL};
  cursor->class = frame_class_of(&cursor->current);
  if (own && own->kind == KVMGDB_RULE_SYSCALL)
    cursor->class = FRAME_SYSCALL;
  if (own && own->kind == KVMGDB_RULE_IRET)
    cursor->class = FRAME_IRET;
  const struct kvmgdb_debug_rule *listed = frames->rules + cursor->own;
  bool counted = cursor->own < frames->rule_count && listed->start <= at &&
                 listed->kind == KVMGDB_RULE_CALLS_ITSELF &&
                 cursor->current.type == ORC_TYPE_CALL &&
                 cursor->current.sp_register == ORC_SP;
  cursor->counted = counted ? listed : NULL;
  if (counted && listed->cfa_offset)
    cursor->current.sp_offset = listed->cfa_offset;
}

static void put_row(struct buffer *out, const struct orc_rule *before,
                    const struct cursor *cursor) {
  if (cursor->counted)
    frame_put_counted_row(out, &cursor->current, cursor->counted->start,
                          cursor->counted->end);
  else
    frame_put_row(out, before, &cursor->current);
}

/* Where something else may hold: a rule or, with *symbol set, a symbol. */
static uint64_t next_change(const struct frames *frames,
                            const struct cursor *cursor, bool *symbol) {
  uint64_t change = cursor->end;
  *symbol = false;
  if (cursor->next < cursor->table->count) {
    uint64_t ip = cursor->table->start + cursor->table->ips[cursor->next];
    if (ip < change)
      change = ip;
  }
  if (cursor->own < frames->rule_count) {
    const struct kvmgdb_debug_rule *own = frames->rules + cursor->own;
    uint64_t edge = own->start > cursor->at ? own->start : own->end;
    if (edge < change)
      change = edge;
  }
  if (cursor->symbol < frames->symbols->count) {
    uint64_t address = frames->symbols->entries[cursor->symbol].address;
    if (address <= change) {
      change = address;
      *symbol = true;
    }
  }
  return change;
}

static void put_advance(struct buffer *out, uint64_t bytes) {
  if (bytes < 0x40) {
    put_u8(out, (uint8_t)(DW_CFA_advance_loc | bytes));
  } else if (bytes <= UINT8_MAX) {
    put_u8(out, DW_CFA_advance_loc1);
    put_u8(out, (uint8_t)bytes);
  } else if (bytes <= UINT16_MAX) {
    put_u8(out, DW_CFA_advance_loc2);
    put_u16(out, (uint16_t)bytes);
  } else {
    put_u8(out, DW_CFA_advance_loc4);
    put_u32(out, (uint32_t)bytes);
  }
}

static bool is_call_on_stack(const struct frames *frames,
                             const struct cursor *cursor) {
  if (cursor->symbol == 0 || cursor->current.sp_register != ORC_BP ||
      cursor->current.type != ORC_TYPE_CALL)
    return false;
  const struct kvmgdb_symbols *symbols = frames->symbols;
  const char *name =
      symbols->names + symbols->entries[cursor->symbol - 1].name + 1;
  return strncmp(name, CALL_ON_STACK, strlen(CALL_ON_STACK)) == 0;
}

static void note(struct frames *frames, const struct cursor *cursor,
                 uint64_t end) {
  struct kvmgdb_debug *debug = frames->debug;
  bool switches = frame_switches_stack(&cursor->current) ||
                  is_call_on_stack(frames, cursor);
  const struct kvmgdb_debug_rule *own = own_rule(frames, cursor);
  if (!switches && (!own || !is_call(own)))
    return;
  struct noted_code *last =
      debug->noted_count ? &debug->noted[debug->noted_count - 1] : NULL;
  if (last && last->end == cursor->at && last->switches == switches)
    last->end = end;
  else if (debug->noted_count < MAX_NOTED)
    debug->noted[debug->noted_count++] = (struct noted_code){
        .start = cursor->at, .end = end, .switches = switches};
}

/* Whether what the frame leads to was interrupted, by the table. */
static bool is_signal(const struct cursor *cursor) {
  return cursor->current.signal && cursor->class < FRAME_OUTER;
}

/* From the cursor on, as far as one symbol and one class go. */
static void put_fde(struct frames *frames, struct cursor *cursor) {
  enum frame_class class = cursor->class;
  bool signal = is_signal(cursor), symbol = false;
  struct buffer *out = frames->out;
  size_t start = out->length;
  uint64_t first = cursor->at, row = first;
  struct orc_rule before;
  put_u32(out, 0);
  put_u32(out, frames->cies[class][signal]);
  put_u64(out, first);
  size_t range_at = out->length;
  put_u64(out, 0);
  put_row(out, NULL, cursor);
  const struct kvmgdb_debug_rule *counted = cursor->counted;
  while (!symbol && cursor->at < cursor->end && out->status == KVMGDB_OK) {
    uint64_t change = next_change(frames, cursor, &symbol);
    note(frames, cursor, change);
    before = cursor->current;
    cursor_move(frames, cursor, change);
    if (symbol || change == cursor->end || cursor->counted != counted ||
        cursor->class != class || is_signal(cursor) != signal)
      break;
    size_t advance_at = out->length;
    put_advance(out, change - row);
    size_t advanced = out->length;
    put_row(out, &before, cursor);
    if (out->length == advanced)
      out->length = advance_at; /* nothing changes */
    else
      row = change;
  }
  buffer_patch_u32(out, range_at, (uint32_t)(cursor->at - first));
  frame_end_entry(out, start);
}

static void put_table(struct frames *frames, const struct orc_table *table,
                      const struct kvmgdb_debug_area *area) {
  struct cursor cursor = {.table = table,
                          .rule = table->count,
                          .end =
                              table->end < area->end ? table->end : area->end};
  cursor_move(frames, &cursor,
              table->start > area->start ? table->start : area->start);
  while (cursor.at < cursor.end && frames->out->status == KVMGDB_OK)
    put_fde(frames, &cursor);
}

/* What is user mode's has been left by an entry, and is not unwound here. */
static void put_user_mode(struct frames *frames) {
  struct buffer *out = frames->out;
  size_t start = out->length;
  put_u32(out, 0);
  put_u32(out, frames->cies[FRAME_OUTER][0]);
  put_u64(out, 0x1000);
  put_u64(out, (UINT64_C(1) << 56) - 0x2000);
  frame_end_entry(out, start);
}

enum kvmgdb_status kvmgdb_debug_add_frames(
    struct kvmgdb_debug *debug, const struct kvmgdb_unwinder *unwinder,
    const struct kvmgdb_symbols *symbols, const struct kvmgdb_debug_rule *rules,
    size_t rule_count, int user_mode, struct kvmgdb_error *error) {
  if (!debug || !unwinder || !symbols || (!rules && rule_count))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  for (size_t i = 0; i < rule_count; i++)
    if (rules[i].start >= rules[i].end || rules[i].kind > KVMGDB_RULE_IRET ||
        (i && rules[i].start < rules[i - 1].end))
      return error_set(error, KVMGDB_ERR_INVALID, 0, rules[i].start);
  debug_reset(debug, SECTIONS);
  debug->noted_count = 0;
  struct frames frames = {.debug = debug,
                          .out = &debug->sections[KVMGDB_DEBUG_FRAME],
                          .symbols = symbols,
                          .rules = rules,
                          .rule_count = rule_count};
  for (int class = 0; class < FRAME_CLASSES; class ++)
    for (int signal = 0; signal < 2; signal++)
      frames.cies[class][signal] =
          frame_put_cie(frames.out, (enum frame_class) class, signal);
  if (user_mode)
    put_user_mode(&frames);
  for (size_t i = 0; i < unwinder->count; i++)
    for (size_t j = 0; j < debug->area_count; j++) {
      const struct orc_table *table = &unwinder->tables[i];
      const struct kvmgdb_debug_area *area = &debug->areas[j];
      if (area->executable && table->start < area->end &&
          area->start < table->end)
        put_table(&frames, table, area);
    }
  return debug_finish(debug, SECTIONS, error);
}
