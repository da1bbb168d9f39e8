/* Layouts: ACPI Specification 6.4, chapter 5; AML: chapter 20. */
#include "tables.h"

#include <string.h>

#define ACPI_GPA RAM_FIRMWARE_START
#define ACPI_END 0xf0000ULL
#define ADDRESS_SPACE_IO 1
#define FADT_WBINVD (1U << 0)
#define FADT_PROC_C1 (1U << 2)
#define FADT_NO_POWER_BUTTON (1U << 4)
#define FADT_NO_SLEEP_BUTTON (1U << 5)
#define FADT_RESET_REGISTER (1U << 10)
#define BOOT_ARCH_LEGACY_DEVICES (1U << 0)
#define BOOT_ARCH_NO_VGA (1U << 2)
#define RESET_PORT 0xcf9
#define RESET_VALUE 0x06
#define MADT_PC_COMPATIBLE 1
#define MADT_LAPIC 0
#define MADT_IOAPIC 1
#define MADT_OVERRIDE 2
#define MADT_LAPIC_NMI 4
#define MADT_ENABLED 1
#define MADT_HIGH_LEVEL 0xd

struct rsdp {
  char signature[8];
  uint8_t checksum;
  char oem[6];
  uint8_t revision;
  uint32_t rsdt;
  uint32_t length;
  uint64_t xsdt;
  uint8_t extended_checksum;
  uint8_t reserved[3];
} __attribute__((packed));

struct table_header {
  char signature[4];
  uint32_t length;
  uint8_t revision;
  uint8_t checksum;
  char oem[6];
  char oem_table[8];
  uint32_t oem_revision;
  char creator[4];
  uint32_t creator_revision;
} __attribute__((packed));

struct generic_address {
  uint8_t space;
  uint8_t bit_width;
  uint8_t bit_offset;
  uint8_t access_size;
  uint64_t address;
} __attribute__((packed));

struct fadt {
  struct table_header header;
  uint32_t facs;
  uint32_t dsdt;
  uint8_t reserved0;
  uint8_t profile;
  uint16_t sci_interrupt;
  uint32_t smi_command; /* 0: the machine is always in ACPI mode */
  uint8_t smi_values[4];
  uint32_t pm1a_event;
  uint32_t pm1b_event;
  uint32_t pm1a_control;
  uint32_t pm1b_control;
  uint32_t pm2_control;
  uint32_t pm_timer;
  uint32_t gpe[2];
  uint8_t pm1_event_length;
  uint8_t pm1_control_length;
  uint8_t other_lengths[6];
  uint16_t c2_latency;
  uint16_t c3_latency;
  uint8_t cache_and_clock[9];
  uint16_t boot_architecture;
  uint8_t reserved1;
  uint32_t flags;
  struct generic_address reset_register;
  uint8_t reset_value;
  uint8_t reserved2[3];
  uint64_t extended_facs; /* 0: `facs` holds, and only one of them may */
  uint64_t extended_dsdt;
  struct generic_address extended_pm1a_event;
  struct generic_address extended_pm1b_event;
  struct generic_address extended_pm1a_control;
  struct generic_address others[5];
} __attribute__((packed));
_Static_assert(sizeof(struct fadt) == 244, "FADT of ACPI 2.0 to 4.0");
_Static_assert(offsetof(struct fadt, boot_architecture) == 109, "FADT layout");

struct facs {
  char signature[4];
  uint32_t length;
  uint32_t unused[6];
  uint8_t version;
  uint8_t reserved[31];
} __attribute__((packed));
_Static_assert(sizeof(struct facs) == 64, "FACS layout");

struct madt_header {
  struct table_header header;
  uint32_t lapic;
  uint32_t flags;
} __attribute__((packed));

struct madt_lapic {
  uint8_t type, length, processor, apic_id;
  uint32_t flags;
} __attribute__((packed));

struct madt_ioapic {
  uint8_t type, length, id, reserved;
  uint32_t address, first_interrupt;
} __attribute__((packed));

struct madt_override {
  uint8_t type, length, bus, source;
  uint32_t interrupt;
  uint16_t flags;
} __attribute__((packed));

struct madt_lapic_nmi {
  uint8_t type, length, processor;
  uint16_t flags;
  uint8_t pin;
} __attribute__((packed));

struct madt {
  struct madt_header start;
  struct madt_ioapic ioapic;
  struct madt_override timer;
  struct madt_override sci;
  struct madt_lapic_nmi nmi;
  struct madt_lapic cpus[TABLES_CPUS_MAX];
} __attribute__((packed));

/* Name (_S5, Package () {5, 5, 0, 0}): how a kernel learns to power off. */
static const uint8_t dsdt_aml[] = {
    0x08, '_',
    'S',  '5',
    '_',  0x12,
    0x08, 0x04,
    0x0a, ACPI_SLEEP_TYPE_S5,
    0x0a, ACPI_SLEEP_TYPE_S5,
    0x00, 0x00,
};

struct dsdt {
  struct table_header header;
  uint8_t aml[sizeof(dsdt_aml)];
} __attribute__((packed));

struct xsdt {
  struct table_header header;
  uint64_t tables[2];
} __attribute__((packed));

/* All tables, in the order in which they lie in memory. */
struct layout {
  struct rsdp rsdp __attribute__((aligned(16)));
  struct facs facs __attribute__((aligned(64)));
  struct xsdt xsdt __attribute__((aligned(16)));
  struct fadt fadt __attribute__((aligned(16)));
  struct dsdt dsdt __attribute__((aligned(16)));
  struct madt madt __attribute__((aligned(16)));
};
_Static_assert(ACPI_GPA + sizeof(struct layout) <= ACPI_END, "tables fit");

#define GPA_OF(member) (ACPI_GPA + offsetof(struct layout, member))

uint8_t table_checksum(const void *table, size_t length) {
  const uint8_t *bytes = table;
  uint8_t sum = 0;
  for (size_t i = 0; i < length; i++)
    sum = (uint8_t)(sum + bytes[i]);
  return (uint8_t)-sum;
}

/* Fills the header of a table whose body is complete. */
static void seal(void *table, const char *signature, uint8_t revision,
                 size_t length) {
  struct table_header header = {
      .length = (uint32_t)length,
      .revision = revision,
      .oem = {'K', 'V', 'M', 'G', 'D', 'B'},
      .oem_table = {'V', 'M', 'M', ' ', ' ', ' ', ' ', ' '},
      .oem_revision = 1,
      .creator = {'K', 'G', 'D', 'B'},
      .creator_revision = 1,
  };
  memcpy(header.signature, signature, sizeof(header.signature));
  memcpy(table, &header, sizeof(header));
  header.checksum = table_checksum(table, length);
  memcpy(table, &header, sizeof(header));
}

static struct generic_address io_address(uint16_t port, uint8_t bits) {
  return (struct generic_address){ADDRESS_SPACE_IO, bits, 0, bits / 8, port};
}

static void fill_fadt(struct fadt *fadt) {
  *fadt = (struct fadt){
      .facs = GPA_OF(facs),
      .dsdt = GPA_OF(dsdt),
      .sci_interrupt = ACPI_SCI_IRQ,
      .pm1a_event = ACPI_PM1_EVENT_PORT,
      .pm1a_control = ACPI_PM1_CONTROL_PORT,
      .pm1_event_length = 4,
      .pm1_control_length = 2,
      .c2_latency = 0xffff,
      .c3_latency = 0xffff,
      .boot_architecture = BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA,
      .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_POWER_BUTTON |
               FADT_NO_SLEEP_BUTTON | FADT_RESET_REGISTER,
      .reset_register = io_address(RESET_PORT, 8),
      .reset_value = RESET_VALUE,
      .extended_dsdt = GPA_OF(dsdt),
      .extended_pm1a_event = io_address(ACPI_PM1_EVENT_PORT, 32),
      .extended_pm1a_control = io_address(ACPI_PM1_CONTROL_PORT, 16),
  };
  /* Access widths: the event block is two 16-bit registers. */
  fadt->extended_pm1a_event.access_size = 2;
  seal(fadt, "FACP", 3, sizeof(*fadt));
}

static void fill_madt(struct madt *madt, unsigned cpu_count) {
  madt->start.lapic = LAPIC_ADDRESS;
  madt->start.flags = MADT_PC_COMPATIBLE;
  madt->ioapic = (struct madt_ioapic){MADT_IOAPIC,        sizeof(madt->ioapic),
                                      (uint8_t)cpu_count, 0,
                                      IOAPIC_ADDRESS,     0};
  madt->timer = (struct madt_override){
      MADT_OVERRIDE, sizeof(madt->timer), 0, 0, IOAPIC_TIMER_PIN, 0};
  madt->sci =
      (struct madt_override){MADT_OVERRIDE, sizeof(madt->sci), 0,
                             ACPI_SCI_IRQ,  ACPI_SCI_IRQ,      MADT_HIGH_LEVEL};
  madt->nmi =
      (struct madt_lapic_nmi){MADT_LAPIC_NMI, sizeof(madt->nmi), 0xff, 0, 1};
  for (unsigned i = 0; i < cpu_count; i++)
    madt->cpus[i] = (struct madt_lapic){MADT_LAPIC, sizeof(madt->cpus[i]),
                                        (uint8_t)i, (uint8_t)i, MADT_ENABLED};
  seal(madt, "APIC", 3,
       offsetof(struct madt, cpus) + cpu_count * sizeof(madt->cpus[0]));
}

bool acpi_write(struct guest_ram *ram, unsigned cpu_count, uint64_t *rsdp,
                struct vmm_error *error) {
  if (cpu_count == 0 || cpu_count > TABLES_CPUS_MAX)
    return vmm_fail(error, "%u vCPUs; at most %d are supported", cpu_count,
                    TABLES_CPUS_MAX);
  struct layout layout = {0};
  fill_fadt(&layout.fadt);
  fill_madt(&layout.madt, cpu_count);
  memcpy(layout.facs.signature, "FACS", 4);
  layout.facs.length = sizeof(layout.facs);
  layout.facs.version = 1;
  memcpy(layout.dsdt.aml, dsdt_aml, sizeof(dsdt_aml));
  seal(&layout.dsdt, "DSDT", 2, sizeof(layout.dsdt));
  layout.xsdt.tables[0] = GPA_OF(fadt);
  layout.xsdt.tables[1] = GPA_OF(madt);
  seal(&layout.xsdt, "XSDT", 1, sizeof(layout.xsdt));
  layout.rsdp = (struct rsdp){
      .signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
      .oem = {'K', 'V', 'M', 'G', 'D', 'B'},
      .revision = 2,
      .length = sizeof(layout.rsdp),
      .xsdt = GPA_OF(xsdt),
  };
  layout.rsdp.checksum =
      table_checksum(&layout.rsdp, offsetof(struct rsdp, length));
  layout.rsdp.extended_checksum =
      table_checksum(&layout.rsdp, sizeof(layout.rsdp));
  *rsdp = GPA_OF(rsdp);
  return guest_ram_write(ram, ACPI_GPA, &layout, sizeof(layout), "ACPI tables",
                         error);
}
