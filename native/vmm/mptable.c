#include "tables.h"

#include <string.h>

#define MP_GPA 0xf0000ULL
#define ENTRY_PROCESSOR 0
#define ENTRY_BUS 1
#define ENTRY_IOAPIC 2
#define ENTRY_IO_INTERRUPT 3
#define ENTRY_LOCAL_INTERRUPT 4
#define INTERRUPT_INT 0
#define INTERRUPT_NMI 1
#define INTERRUPT_EXTINT 3
#define PROCESSOR_ENABLED 0x1
#define PROCESSOR_BSP 0x2
#define LAPIC_VERSION 0x14
#define IOAPIC_VERSION 0x11
#define ISA_INTERRUPTS 16
#define ALL_LAPICS 0xff

struct floating_pointer {
  char signature[4];
  uint32_t table;
  uint8_t length; /* in 16 bytes */
  uint8_t specification;
  uint8_t checksum;
  uint8_t feature[5];
};

struct table_header {
  char signature[4];
  uint16_t length;
  uint8_t specification;
  uint8_t checksum;
  char oem[8];
  char product[12];
  uint32_t oem_table;
  uint16_t oem_size;
  uint16_t entry_count;
  uint32_t lapic;
  uint32_t reserved;
};

struct processor {
  uint8_t type;
  uint8_t apic_id;
  uint8_t apic_version;
  uint8_t flags;
  uint32_t signature;
  uint32_t features;
  uint32_t reserved[2];
};

struct bus {
  uint8_t type;
  uint8_t id;
  char name[6];
};

struct ioapic {
  uint8_t type;
  uint8_t id;
  uint8_t version;
  uint8_t flags;
  uint32_t address;
};

struct interrupt {
  uint8_t type;
  uint8_t kind;
  uint16_t flags; /* 0: polarity and trigger conform to the bus */
  uint8_t source_bus;
  uint8_t source_irq;
  uint8_t destination;
  uint8_t pin;
};

struct table {
  struct floating_pointer pointer;
  struct table_header header;
  uint8_t entries[TABLES_CPUS_MAX * sizeof(struct processor) + 256];
};
_Static_assert(MP_GPA + sizeof(struct table) <= RAM_FIRMWARE_END,
               "MP table fits into the firmware's memory");

static void append(struct table *table, const void *entry, size_t size) {
  size_t used = table->header.length - sizeof(table->header);
  memcpy(table->entries + used, entry, size);
  table->header.length += (uint16_t)size;
  table->header.entry_count++;
}

bool mptable_write(struct guest_ram *ram, unsigned cpu_count,
                   struct vmm_error *error) {
  if (cpu_count == 0 || cpu_count > TABLES_CPUS_MAX)
    return vmm_fail(error, "%u vCPUs; at most %d are supported", cpu_count,
                    TABLES_CPUS_MAX);
  struct table table = {
      .pointer =
          {
              .signature = {'_', 'M', 'P', '_'},
              .table = MP_GPA + offsetof(struct table, header),
              .length = 1,
              .specification = 4,
          },
      .header =
          {
              .signature = {'P', 'C', 'M', 'P'},
              .length = sizeof(struct table_header),
              .specification = 4,
              .oem = {'K', 'V', 'M', 'G', 'D', 'B', ' ', ' '},
              .product = {'V', 'M', 'M', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ',
                          ' '},
              .lapic = LAPIC_ADDRESS,
          },
  };
  table.pointer.checksum =
      table_checksum(&table.pointer, sizeof(table.pointer));

  for (unsigned i = 0; i < cpu_count; i++) {
    struct processor processor = {
        .type = ENTRY_PROCESSOR,
        .apic_id = (uint8_t)i,
        .apic_version = LAPIC_VERSION,
        .flags = PROCESSOR_ENABLED | (i == 0 ? PROCESSOR_BSP : 0),
        .signature = 0x600,
        .features = 0x201, /* FPU, APIC */
    };
    append(&table, &processor, sizeof(processor));
  }
  struct bus isa = {ENTRY_BUS, 0, {'I', 'S', 'A', ' ', ' ', ' '}};
  append(&table, &isa, sizeof(isa));
  uint8_t ioapic_id = (uint8_t)cpu_count;
  struct ioapic ioapic = {ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, 1,
                          IOAPIC_ADDRESS};
  append(&table, &ioapic, sizeof(ioapic));
  for (uint8_t irq = 0; irq < ISA_INTERRUPTS; irq++) {
    if (irq == IOAPIC_TIMER_PIN)
      continue; /* the cascade of the second 8259: no device has it */
    struct interrupt interrupt = {
        .type = ENTRY_IO_INTERRUPT,
        .kind = INTERRUPT_INT,
        .source_irq = irq,
        .destination = ioapic_id,
        .pin = irq == 0 ? IOAPIC_TIMER_PIN : irq,
    };
    append(&table, &interrupt, sizeof(interrupt));
  }
  struct interrupt extint = {
      ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0, ALL_LAPICS, 0};
  append(&table, &extint, sizeof(extint));
  struct interrupt nmi = {
      ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, ALL_LAPICS, 1};
  append(&table, &nmi, sizeof(nmi));
  table.header.checksum = table_checksum(&table.header, table.header.length);
  return guest_ram_write(ram, MP_GPA, &table, sizeof(table), "MP table", error);
}
