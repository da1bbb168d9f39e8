#include "harness.h"
#include "images.h"
#include "tables.h"

#include <string.h>

static uint64_t get(struct guest_ram *ram, uint64_t gpa, unsigned size) {
  uint64_t value = 0;
  memcpy(&value, guest_ram_at(ram, gpa, size), size);
  return value;
}

static void check_sum(struct guest_ram *ram, uint64_t gpa, uint64_t length) {
  CHECK(guest_ram_at(ram, gpa, length));
  CHECK_EQUAL(table_checksum(guest_ram_at(ram, gpa, length), length), 0);
}

static void check_acpi(unsigned cpus) {
  RAM ram = ram_create(64);
  struct vmm_error error;
  uint64_t rsdp;
  CHECK(acpi_write(&ram, cpus, &rsdp, &error));
  CHECK(memcmp(guest_ram_at(&ram, rsdp, 8), "RSD PTR ", 8) == 0);
  check_sum(&ram, rsdp, 20);
  check_sum(&ram, rsdp, get(&ram, rsdp + 20, 4));
  uint64_t xsdt = get(&ram, rsdp + 24, 8);
  check_sum(&ram, xsdt, get(&ram, xsdt + 4, 4));
  uint64_t fadt = get(&ram, xsdt + 36, 8), madt = get(&ram, xsdt + 44, 8);
  CHECK(memcmp(guest_ram_at(&ram, fadt, 4), "FACP", 4) == 0);
  check_sum(&ram, fadt, get(&ram, fadt + 4, 4));
  uint64_t dsdt = get(&ram, fadt + 140, 8);
  CHECK(memcmp(guest_ram_at(&ram, dsdt, 4), "DSDT", 4) == 0);
  check_sum(&ram, dsdt, get(&ram, dsdt + 4, 4));
  CHECK(memcmp(guest_ram_at(&ram, madt, 4), "APIC", 4) == 0);
  uint64_t end = madt + get(&ram, madt + 4, 4);
  check_sum(&ram, madt, end - madt);
  unsigned found = 0;
  for (uint64_t at = madt + 44; at < end; at += get(&ram, at + 1, 1)) {
    CHECK(get(&ram, at + 1, 1) >= 2);
    if (get(&ram, at, 1) == 0)
      CHECK_EQUAL(get(&ram, at + 3, 1), found++);
  }
  CHECK_EQUAL(found, cpus);
}

TEST(tables, acpi_names_every_vcpu) {
  check_acpi(1);
  check_acpi(2);
  check_acpi(TABLES_CPUS_MAX);
}

static void check_mp(unsigned cpus) {
  RAM ram = ram_create(64);
  struct vmm_error error;
  CHECK(mptable_write(&ram, cpus, &error));
  uint64_t pointer = 0xf0000;
  CHECK(memcmp(guest_ram_at(&ram, pointer, 4), "_MP_", 4) == 0);
  check_sum(&ram, pointer, 16);
  uint64_t table = get(&ram, pointer + 4, 4);
  CHECK(memcmp(guest_ram_at(&ram, table, 4), "PCMP", 4) == 0);
  check_sum(&ram, table, get(&ram, table + 4, 2));
  uint64_t at = table + 44, end = table + get(&ram, table + 4, 2);
  unsigned found = 0, boot = 0, entries = 0;
  for (; at < end; entries++) {
    uint64_t type = get(&ram, at, 1);
    if (type == 0) {
      found++;
      boot += get(&ram, at + 3, 1) >> 1 & 1;
    }
    at += type == 0 ? 20 : 8;
  }
  CHECK_EQUAL(at, end);
  CHECK_EQUAL(found, cpus);
  CHECK_EQUAL(boot, 1);
  CHECK_EQUAL(entries, get(&ram, table + 34, 2));
}

TEST(tables, the_mp_table_names_every_vcpu) {
  check_mp(1);
  check_mp(2);
  check_mp(TABLES_CPUS_MAX);
}

TEST(tables, too_many_vcpus_are_refused) {
  RAM ram = ram_create(64);
  struct vmm_error error;
  uint64_t rsdp;
  CHECK(!mptable_write(&ram, TABLES_CPUS_MAX + 1, &error));
  CHECK(!acpi_write(&ram, TABLES_CPUS_MAX + 1, &rsdp, &error));
  CHECK(!acpi_write(&ram, 0, &rsdp, &error));
  CHECK(strstr(error.text, "vCPUs"));
}
