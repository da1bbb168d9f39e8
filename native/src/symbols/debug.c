#include "debug.h"

#include <stdlib.h>

#include "../error.h"
#include "functions.h"
#include "variables.h"

enum kvmgdb_status kvmgdb_debug_create(const struct kvmgdb_debug_area *areas,
                                       size_t count, struct kvmgdb_debug **out,
                                       struct kvmgdb_error *error) {
  if ((!areas && count) || !out || count > MAX_AREAS)
    return error_set(error, KVMGDB_ERR_INVALID, 0, count);
  for (size_t i = 0; i < count; i++)
    if (areas[i].start >= areas[i].end ||
        (i && areas[i].start < areas[i - 1].end))
      return error_set(error, KVMGDB_ERR_INVALID, 0, areas[i].start);
  struct kvmgdb_debug *debug = calloc(1, sizeof(*debug));
  if (!debug)
    return error_set(error, KVMGDB_ERR_NO_MEMORY, 0, 0);
  for (size_t i = 0; i < count; i++)
    debug->areas[i] = areas[i];
  debug->area_count = count;
  *out = debug;
  return KVMGDB_OK;
}

void kvmgdb_debug_destroy(struct kvmgdb_debug *debug) {
  if (!debug)
    return;
  for (int i = 0; i < KVMGDB_DEBUG_SECTIONS; i++)
    buffer_deinit(&debug->sections[i]);
  free(debug);
}

const void *kvmgdb_debug_section(const struct kvmgdb_debug *debug,
                                 enum kvmgdb_debug_section which,
                                 size_t *length) {
  if (!debug || !length || (int)which < 0 || which >= KVMGDB_DEBUG_SECTIONS)
    return NULL;
  *length = debug->sections[which].length;
  return debug->sections[which].data;
}

int area_of(const struct kvmgdb_debug *debug, uint64_t address) {
  for (size_t i = 0; i < debug->area_count; i++)
    if (address >= debug->areas[i].start && address < debug->areas[i].end)
      return (int)i;
  return -1;
}

void debug_reset(struct kvmgdb_debug *debug, uint32_t sections) {
  for (int i = 0; i < KVMGDB_DEBUG_SECTIONS; i++)
    if (sections >> i & 1)
      buffer_deinit(&debug->sections[i]);
}

enum kvmgdb_status debug_finish(struct kvmgdb_debug *debug, uint32_t sections,
                                struct kvmgdb_error *error) {
  enum kvmgdb_status status = KVMGDB_OK;
  for (int i = 0; i < KVMGDB_DEBUG_SECTIONS; i++)
    if (sections >> i & 1 && status == KVMGDB_OK)
      status = debug->sections[i].status;
  if (status == KVMGDB_OK)
    return KVMGDB_OK;
  debug_reset(debug, sections);
  return error_set(error, status, 0, 0);
}

#define TYPE_SECTIONS                                                          \
  (1u << KVMGDB_DEBUG_INFO | 1u << KVMGDB_DEBUG_ABBREV |                       \
   1u << KVMGDB_DEBUG_STR | 1u << KVMGDB_DEBUG_ARANGES |                       \
   1u << KVMGDB_DEBUG_LOCLISTS)

enum kvmgdb_status kvmgdb_debug_add_types(
    struct kvmgdb_debug *debug, const struct kvmgdb_btf *btf,
    const struct kvmgdb_symbols *symbols, const char *producer,
    const char *name, const struct kvmgdb_debug_variable *variables,
    size_t variable_count, const struct kvmgdb_debug_percpu *percpu,
    int static_calls_follow_abi, struct kvmgdb_error *error) {
  if (!debug || !btf || !symbols || !producer || !name ||
      (!variables && variable_count))
    return error_set(error, KVMGDB_ERR_INVALID, 0, 0);
  debug_reset(debug, TYPE_SECTIONS);
  __attribute__((cleanup(info_deinit))) struct info info;
  enum kvmgdb_status status =
      info_init(&info, debug, btf, producer, name, error);
  info.static_calls_follow_abi = static_calls_follow_abi != 0;
  if (status == KVMGDB_OK) {
    dwarf_put_abbreviations(&debug->sections[KVMGDB_DEBUG_ABBREV]);
    info_put_types(&info);
    info_put_variables(&info, variables, variable_count, percpu);
    status = info_put_functions(&info, debug, symbols, error);
  }
  if (status == KVMGDB_OK)
    return debug_finish(debug, TYPE_SECTIONS, error);
  debug_reset(debug, TYPE_SECTIONS);
  return status;
}
