/*
 * A 16550A UART (National Semiconductor PC16550D data sheet), without baud
 * rates: a byte is sent when it is written. The caller serialises all calls.
 */
#ifndef KVMGDB_VMM_SERIAL_H
#define KVMGDB_VMM_SERIAL_H

#include "sink.h"

#include <stdbool.h>
#include <stdint.h>

#define SERIAL_PORT 0x3f8
#define SERIAL_PORTS 8
#define SERIAL_IRQ 4
#define SERIAL_FIFO 16

struct serial {
  struct sink *sink; /* NULL: nothing is connected */
  void (*set_irq)(void *context, bool level);
  void *context;
  bool irq_level;
  uint8_t interrupt_enable;
  uint8_t fifo_control;
  uint8_t line_control;
  uint8_t modem_control;
  uint8_t scratch;
  uint16_t divisor;
  bool overrun;
  bool transmit_pending; /* the "transmitter empty" interrupt is due */
  uint8_t received[SERIAL_FIFO];
  unsigned received_count;
};

void serial_init(struct serial *serial, struct sink *sink,
                 void (*set_irq)(void *context, bool level), void *context);
void serial_reset(struct serial *serial);

/* `offset` is 0 to 7. */
uint8_t serial_read(struct serial *serial, unsigned offset);
void serial_write(struct serial *serial, unsigned offset, uint8_t value);

/* How many bytes serial_receive would take now. */
unsigned serial_room(const struct serial *serial);
void serial_receive(struct serial *serial, uint8_t byte);

/* The sink has room again: a guest that waits for that is told. */
void serial_transmit_ready(struct serial *serial);

#endif
