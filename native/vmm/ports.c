#include "ports.h"

#include "tables.h"

#define DEBUG_CONSOLE_PORT 0xe9
#define EXIT_PORT 0xf4
#define KEYBOARD_DATA_PORT 0x60
#define KEYBOARD_COMMAND_PORT 0x64
#define KEYBOARD_PULSE_RESET 0xfe
#define SYSTEM_CONTROL_PORT 0x92
#define SYSTEM_CONTROL_RESET 0x01
#define SYSTEM_CONTROL_A20 0x02
#define RESET_CONTROL_PORT 0xcf9
#define RESET_CONTROL_CPU 0x04
#define PM1_ENABLE_PORT (ACPI_PM1_EVENT_PORT + 2)
#define PM1_SCI_ENABLE 0x0001
#define PM1_SLEEP_TYPE(value) ((value) >> 10 & 7)
#define PM1_SLEEP_ENABLE 0x2000

void ports_init(struct ports *ports, struct sink *debug_console) {
  pthread_mutex_init(&ports->lock, NULL);
  ports->debug_console = debug_console;
  ports->port_a = SYSTEM_CONTROL_A20;
  ports->pm1_enable = 0;
  ports->pm1_control = PM1_SCI_ENABLE;
}

void ports_reset(struct ports *ports) {
  pthread_mutex_lock(&ports->lock);
  serial_reset(&ports->serial);
  ports->port_a = SYSTEM_CONTROL_A20;
  ports->pm1_enable = 0;
  ports->pm1_control = PM1_SCI_ENABLE;
  pthread_mutex_unlock(&ports->lock);
}

static uint8_t byte_of(uint16_t value, unsigned index) {
  return (uint8_t)(value >> (8 * index));
}

static void set_byte(uint16_t *value, unsigned index, uint8_t byte) {
  *value = (uint16_t)((*value & ~(0xff << (8 * index))) | byte << (8 * index));
}

static uint8_t in_byte(struct ports *ports, uint16_t port) {
  if (port >= SERIAL_PORT && port < SERIAL_PORT + SERIAL_PORTS)
    return serial_read(&ports->serial, port - SERIAL_PORT);
  switch (port) {
  case CMOS_DATA_PORT:
    return cmos_read(&ports->cmos);
  case DEBUG_CONSOLE_PORT:
    return DEBUG_CONSOLE_PORT;
  case SYSTEM_CONTROL_PORT:
    return ports->port_a;
  case KEYBOARD_DATA_PORT:
  case KEYBOARD_COMMAND_PORT: /* no input waiting, no output pending */
  case ACPI_PM1_EVENT_PORT:
  case ACPI_PM1_EVENT_PORT + 1:
    return 0;
  case PM1_ENABLE_PORT:
  case PM1_ENABLE_PORT + 1:
    return byte_of(ports->pm1_enable, port - PM1_ENABLE_PORT);
  case ACPI_PM1_CONTROL_PORT:
  case ACPI_PM1_CONTROL_PORT + 1:
    return byte_of(ports->pm1_control, port - ACPI_PM1_CONTROL_PORT);
  default:
    return 0xff;
  }
}

static enum ports_request out_pm1_control(struct ports *ports, unsigned index,
                                          uint8_t value) {
  set_byte(&ports->pm1_control, index, value);
  ports->pm1_control |= PM1_SCI_ENABLE;
  if (!(ports->pm1_control & PM1_SLEEP_ENABLE))
    return PORTS_NONE;
  ports->pm1_control &= (uint16_t)~PM1_SLEEP_ENABLE;
  if (PM1_SLEEP_TYPE(ports->pm1_control) != ACPI_SLEEP_TYPE_S5)
    return PORTS_NONE;
  return PORTS_EXIT;
}

static enum ports_request out_byte(struct ports *ports, uint16_t port,
                                   uint8_t value) {
  if (port >= SERIAL_PORT && port < SERIAL_PORT + SERIAL_PORTS) {
    serial_write(&ports->serial, port - SERIAL_PORT, value);
    return PORTS_NONE;
  }
  switch (port) {
  case CMOS_INDEX_PORT:
    cmos_select(&ports->cmos, value);
    return PORTS_NONE;
  case CMOS_DATA_PORT:
    cmos_write(&ports->cmos, value);
    return PORTS_NONE;
  case DEBUG_CONSOLE_PORT:
    sink_put(ports->debug_console, value);
    return PORTS_NONE;
  case KEYBOARD_COMMAND_PORT:
    return value == KEYBOARD_PULSE_RESET ? PORTS_RESET : PORTS_NONE;
  case SYSTEM_CONTROL_PORT:
    ports->port_a = value & (uint8_t)~SYSTEM_CONTROL_RESET;
    return value & SYSTEM_CONTROL_RESET ? PORTS_RESET : PORTS_NONE;
  case RESET_CONTROL_PORT:
    return value & RESET_CONTROL_CPU ? PORTS_RESET : PORTS_NONE;
  case PM1_ENABLE_PORT:
  case PM1_ENABLE_PORT + 1:
    set_byte(&ports->pm1_enable, port - PM1_ENABLE_PORT, value);
    return PORTS_NONE;
  case ACPI_PM1_CONTROL_PORT:
  case ACPI_PM1_CONTROL_PORT + 1:
    return out_pm1_control(ports, port - ACPI_PM1_CONTROL_PORT, value);
  default:
    return PORTS_NONE;
  }
}

/*
 * A wider access is one to each port that it covers, as on the ISA bus. The
 * PCI address register (0xcf8) is the exception: only all four bytes at once
 * reach it, so that they cannot touch the reset register inside it.
 */
#define PCI_ADDRESS_PORT 0xcf8

uint32_t ports_in(struct ports *ports, uint16_t port, unsigned size) {
  uint32_t value = 0;
  pthread_mutex_lock(&ports->lock);
  for (unsigned i = 0; i < size; i++)
    value |= (uint32_t)in_byte(ports, (uint16_t)(port + i)) << (8 * i);
  pthread_mutex_unlock(&ports->lock);
  return value;
}

enum ports_request ports_out(struct ports *ports, uint16_t port, unsigned size,
                             uint32_t value, int *exit_status) {
  enum ports_request request = PORTS_NONE;
  *exit_status = 0;
  pthread_mutex_lock(&ports->lock);
  if (port == EXIT_PORT) {
    *exit_status = (int)((value << 1 | 1) & 0xff);
    request = PORTS_EXIT;
  } else if (!(port == PCI_ADDRESS_PORT && size > 1)) {
    for (unsigned i = 0; i < size && request == PORTS_NONE; i++)
      request =
          out_byte(ports, (uint16_t)(port + i), (uint8_t)(value >> 8 * i));
  }
  pthread_mutex_unlock(&ports->lock);
  return request;
}
