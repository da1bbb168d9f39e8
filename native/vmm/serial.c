#include "serial.h"

#include <string.h>

enum { DATA, INTERRUPT_ENABLE, INTERRUPT_ID, LINE_CONTROL };
enum { MODEM_CONTROL = 4, LINE_STATUS, MODEM_STATUS, SCRATCH };

#define IER_RECEIVE 0x01
#define IER_TRANSMIT 0x02
#define IER_LINE 0x04
#define IER_MASK 0x0f
#define IIR_NONE 0x01
#define IIR_TRANSMIT 0x02
#define IIR_RECEIVE 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RECEIVE 0x02
#define FCR_KEPT 0xc9
#define LCR_DIVISOR 0x80
#define MCR_MASK 0x1f
#define MCR_LOOP 0x10
#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_TRANSMIT 0x60  /* holding register and shifter empty */
#define MSR_CONNECTED 0xb0 /* CTS, DSR, DCD */
#define DIVISOR_9600 12

static bool fifo_enabled(const struct serial *serial) {
  return serial->fifo_control & FCR_ENABLE;
}

static unsigned fifo_depth(const struct serial *serial) {
  return fifo_enabled(serial) ? SERIAL_FIFO : 1;
}

/* The pending interrupt of the highest priority (data sheet, table 5). */
static uint8_t interrupt_id(const struct serial *serial) {
  static const uint8_t trigger[4] = {1, 4, 8, 14};
  if ((serial->interrupt_enable & IER_LINE) && serial->overrun)
    return IIR_LINE;
  if ((serial->interrupt_enable & IER_RECEIVE) && serial->received_count > 0) {
    if (!fifo_enabled(serial) ||
        serial->received_count >= trigger[serial->fifo_control >> 6])
      return IIR_RECEIVE;
    return IIR_TIMEOUT;
  }
  if ((serial->interrupt_enable & IER_TRANSMIT) && serial->transmit_pending)
    return IIR_TRANSMIT;
  return IIR_NONE;
}

static void update_irq(struct serial *serial) {
  bool level = interrupt_id(serial) != IIR_NONE;
  if (level == serial->irq_level)
    return;
  serial->irq_level = level;
  serial->set_irq(serial->context, level);
}

void serial_init(struct serial *serial, struct sink *sink,
                 void (*set_irq)(void *context, bool level), void *context) {
  memset(serial, 0, sizeof(*serial));
  serial->sink = sink;
  serial->set_irq = set_irq;
  serial->context = context;
  serial->divisor = DIVISOR_9600;
}

void serial_reset(struct serial *serial) {
  if (serial->irq_level)
    serial->set_irq(serial->context, false);
  serial_init(serial, serial->sink, serial->set_irq, serial->context);
}

unsigned serial_room(const struct serial *serial) {
  /* In loopback the line is cut off. */
  if (serial->modem_control & MCR_LOOP)
    return 0;
  unsigned depth = fifo_depth(serial);
  return serial->received_count < depth ? depth - serial->received_count : 0;
}

static void receive(struct serial *serial, uint8_t byte) {
  if (serial->received_count >= fifo_depth(serial)) {
    serial->overrun = true;
    return;
  }
  serial->received[serial->received_count++] = byte;
}

void serial_receive(struct serial *serial, uint8_t byte) {
  receive(serial, byte);
  update_irq(serial);
}

void serial_transmit_ready(struct serial *serial) {
  serial->transmit_pending = true;
  update_irq(serial);
}

static bool transmitter_empty(const struct serial *serial) {
  return (serial->modem_control & MCR_LOOP) || !serial->sink ||
         sink_has_room(serial->sink);
}

static uint8_t read_data(struct serial *serial) {
  if (serial->received_count == 0)
    return 0;
  uint8_t byte = serial->received[0];
  serial->received_count--;
  memmove(serial->received, serial->received + 1, serial->received_count);
  return byte;
}

static uint8_t modem_status(const struct serial *serial) {
  if (!(serial->modem_control & MCR_LOOP))
    return MSR_CONNECTED;
  /* DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD. */
  uint8_t control = serial->modem_control;
  return (uint8_t)((control & 0x01) << 5 | (control & 0x02) << 3 |
                   (control & 0x04) << 4 | (control & 0x08) << 4);
}

uint8_t serial_read(struct serial *serial, unsigned offset) {
  uint8_t value = 0;
  switch (offset) {
  case DATA:
    value = serial->line_control & LCR_DIVISOR ? serial->divisor & 0xff
                                               : read_data(serial);
    break;
  case INTERRUPT_ENABLE:
    value = serial->line_control & LCR_DIVISOR ? serial->divisor >> 8
                                               : serial->interrupt_enable;
    break;
  case INTERRUPT_ID:
    value = interrupt_id(serial);
    if (value == IIR_TRANSMIT)
      serial->transmit_pending = false;
    if (fifo_enabled(serial))
      value |= IIR_FIFO;
    break;
  case LINE_CONTROL:
    value = serial->line_control;
    break;
  case MODEM_CONTROL:
    value = serial->modem_control;
    break;
  case LINE_STATUS:
    value = (serial->received_count > 0 ? LSR_DATA : 0) |
            (serial->overrun ? LSR_OVERRUN : 0) |
            (transmitter_empty(serial) ? LSR_TRANSMIT : 0);
    serial->overrun = false;
    break;
  case MODEM_STATUS:
    value = modem_status(serial);
    break;
  case SCRATCH:
    value = serial->scratch;
    break;
  }
  update_irq(serial);
  return value;
}

static void write_data(struct serial *serial, uint8_t value) {
  if (serial->modem_control & MCR_LOOP)
    receive(serial, value);
  else if (serial->sink)
    sink_put(serial->sink, value);
  serial->transmit_pending = transmitter_empty(serial);
}

void serial_write(struct serial *serial, unsigned offset, uint8_t value) {
  switch (offset) {
  case DATA:
    if (serial->line_control & LCR_DIVISOR)
      serial->divisor = (uint16_t)((serial->divisor & 0xff00) | value);
    else
      write_data(serial, value);
    break;
  case INTERRUPT_ENABLE:
    if (serial->line_control & LCR_DIVISOR) {
      serial->divisor = (uint16_t)((serial->divisor & 0xff) | value << 8);
      break;
    }
    /* Enabling it while the transmitter is empty raises it at once. */
    if ((value & IER_TRANSMIT) && !(serial->interrupt_enable & IER_TRANSMIT))
      serial->transmit_pending = transmitter_empty(serial);
    serial->interrupt_enable = value & IER_MASK;
    break;
  case INTERRUPT_ID: /* written, it is the FIFO control register */
    if ((value & FCR_CLEAR_RECEIVE) ||
        (value & FCR_ENABLE) != (serial->fifo_control & FCR_ENABLE))
      serial->received_count = 0;
    serial->fifo_control = value & FCR_ENABLE ? value & FCR_KEPT : 0;
    break;
  case LINE_CONTROL:
    serial->line_control = value;
    break;
  case MODEM_CONTROL:
    serial->modem_control = value & MCR_MASK;
    break;
  case SCRATCH:
    serial->scratch = value;
    break;
  }
  update_irq(serial);
}
