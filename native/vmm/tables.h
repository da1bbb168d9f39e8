/*
 * What a firmware would leave in memory: how many processors there are and
 * how interrupts are wired. Two forms, because a kernel may read only one:
 * the MP table (Intel MultiProcessor Specification 1.4), found by scanning,
 * and ACPI (RSDP, XSDT, FADT, FACS, MADT and a DSDT that names S5).
 */
#ifndef KVMGDB_VMM_TABLES_H
#define KVMGDB_VMM_TABLES_H

#include "error.h"
#include "memory.h"

/* xAPIC identifiers are 8 bits: 255 is broadcast, one is the I/O APIC's. */
#define TABLES_CPUS_MAX 254

#define LAPIC_ADDRESS 0xfee00000U
#define IOAPIC_ADDRESS 0xfec00000U
/* As on any PC the timer's ISA interrupt 0 arrives at I/O APIC pin 2. */
#define IOAPIC_TIMER_PIN 2
#define ACPI_SCI_IRQ 9
#define ACPI_PM1_EVENT_PORT 0x600
#define ACPI_PM1_CONTROL_PORT 0x604
#define ACPI_SLEEP_TYPE_S5 5

bool mptable_write(struct guest_ram *ram, unsigned cpu_count,
                   struct vmm_error *error);

/* *rsdp is the guest-physical address of the root pointer. */
bool acpi_write(struct guest_ram *ram, unsigned cpu_count, uint64_t *rsdp,
                struct vmm_error *error);

/* The value that makes all `length` bytes sum to zero. */
uint8_t table_checksum(const void *table, size_t length);

#endif
