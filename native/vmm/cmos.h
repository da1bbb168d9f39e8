/*
 * CMOS RAM and real-time clock (Motorola MC146818A) as far as a kernel needs
 * it to read the time: no alarms, no interrupts, the time is the host's UTC
 * and cannot be set. The RAM keeps its contents over a reset.
 */
#ifndef KVMGDB_VMM_CMOS_H
#define KVMGDB_VMM_CMOS_H

#include <stdint.h>

#define CMOS_INDEX_PORT 0x70
#define CMOS_DATA_PORT 0x71
#define CMOS_SIZE 128

struct cmos {
  uint8_t index;
  uint8_t ram[CMOS_SIZE];
};

/* Sizes are bytes of RAM below 3 GiB and from 4 GiB on. */
void cmos_init(struct cmos *cmos, uint64_t low_memory, uint64_t high_memory);
void cmos_select(struct cmos *cmos, uint8_t index);
uint8_t cmos_read(const struct cmos *cmos);
void cmos_write(struct cmos *cmos, uint8_t value);

#endif
