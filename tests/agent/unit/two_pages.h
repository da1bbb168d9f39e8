/* Guest memory: a page of stack and one of code; all else is not mapped. */
#ifndef TWO_PAGES_H
#define TWO_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct guest {
  uint64_t stack_gva, code_gva;
  uint8_t stack[4096], code[4096];
};

static inline bool read_guest(void *context, uint64_t gva, void *buffer,
                              size_t size) {
  struct guest *guest = context;
  uint8_t *out = buffer;
  for (size_t i = 0; i < size; i++) {
    uint64_t in_stack = gva + i - guest->stack_gva;
    uint64_t in_code = gva + i - guest->code_gva;
    if (in_stack < sizeof(guest->stack))
      out[i] = guest->stack[in_stack];
    else if (in_code < sizeof(guest->code))
      out[i] = guest->code[in_code];
    else
      return false;
  }
  return true;
}

static inline void put(struct guest *guest, uint64_t gva, uint64_t value,
                       size_t size) {
  memcpy(guest->stack + (gva - guest->stack_gva), &value, size);
}

static inline struct guest make_guest(void) {
  return (struct guest){.stack_gva = 0xffffc90000003000, .code_gva = 0x401000};
}

#endif
