/*
 * Everything the guest reaches by IN and OUT that KVM does not handle itself:
 *
 *   0x3f8  16550 serial port, IRQ 4
 *   0x70   CMOS RAM and clock
 *   0xe9   debug console: a byte written goes to standard output; reads 0xe9
 *   0xf4   exit: a write of v (1, 2 or 4 bytes) ends the machine, with the
 *          status (v << 1 | 1) & 0xff; it is odd, the VMM's own are even
 *   0x60   keyboard controller: command 0xfe at 0x64 resets
 *   0x92   system control port A: bit 0 resets
 *   0xcf9  reset control: a byte with bit 2 set resets
 *   0x600  ACPI power management: sleep type 5 ends the machine, status 0
 *
 * Anything else reads as all ones and ignores writes.
 */
#ifndef KVMGDB_VMM_PORTS_H
#define KVMGDB_VMM_PORTS_H

#include "cmos.h"
#include "serial.h"
#include "sink.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum ports_request { PORTS_NONE, PORTS_RESET, PORTS_EXIT };

struct ports {
  pthread_mutex_t lock; /* held over each access: devices are one at a time */
  struct serial serial;
  struct cmos cmos;
  struct sink *debug_console;
  uint8_t port_a;
  uint16_t pm1_enable;
  uint16_t pm1_control;
};

void ports_init(struct ports *ports, struct sink *debug_console);
void ports_reset(struct ports *ports);

/* `size` is 1, 2 or 4 bytes; *exit_status is set with PORTS_EXIT. */
uint32_t ports_in(struct ports *ports, uint16_t port, unsigned size);
enum ports_request ports_out(struct ports *ports, uint16_t port, unsigned size,
                             uint32_t value, int *exit_status);

#endif
