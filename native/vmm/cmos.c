#include "cmos.h"

#include <string.h>
#include <time.h>

enum {
  SECONDS = 0x00,
  MINUTES = 0x02,
  HOURS = 0x04,
  WEEKDAY = 0x06,
  DAY = 0x07,
  MONTH = 0x08,
  YEAR = 0x09,
  STATUS_A = 0x0a,
  STATUS_B = 0x0b,
  STATUS_C = 0x0c,
  STATUS_D = 0x0d,
  CENTURY = 0x32,
};

#define STATUS_A_DIVIDER 0x26 /* 32 kHz, 1024 Hz; no update in progress */
#define STATUS_B_24_HOURS 0x02
#define STATUS_B_BINARY 0x04
#define STATUS_D_VALID 0x80

static void put16(struct cmos *cmos, unsigned index, uint64_t value) {
  uint64_t limited = value > 0xffff ? 0xffff : value;
  cmos->ram[index] = (uint8_t)limited;
  cmos->ram[index + 1] = (uint8_t)(limited >> 8);
}

void cmos_init(struct cmos *cmos, uint64_t low_memory, uint64_t high_memory) {
  memset(cmos, 0, sizeof(*cmos));
  cmos->ram[STATUS_B] = STATUS_B_24_HOURS;
  put16(cmos, 0x15, 640);                       /* KiB of base memory */
  put16(cmos, 0x17, (low_memory >> 10) - 1024); /* KiB from 1 MiB on */
  put16(cmos, 0x30, (low_memory >> 10) - 1024);
  /* 64 KiB blocks from 16 MiB on, and from 4 GiB on. */
  put16(cmos, 0x34, (low_memory - (16 << 20)) >> 16);
  for (unsigned i = 0; i < 3; i++)
    cmos->ram[0x5b + i] = (uint8_t)(high_memory >> (16 + 8 * i));
}

void cmos_select(struct cmos *cmos, uint8_t index) {
  cmos->index = index % CMOS_SIZE; /* bit 7 masks NMIs */
}

static uint8_t encode(const struct cmos *cmos, int value) {
  if (cmos->ram[STATUS_B] & STATUS_B_BINARY)
    return (uint8_t)value;
  return (uint8_t)(value / 10 << 4 | value % 10);
}

static uint8_t encode_hour(const struct cmos *cmos, int hour) {
  if (cmos->ram[STATUS_B] & STATUS_B_24_HOURS)
    return encode(cmos, hour);
  uint8_t afternoon = hour >= 12 ? 0x80 : 0;
  return encode(cmos, hour % 12 == 0 ? 12 : hour % 12) | afternoon;
}

uint8_t cmos_read(const struct cmos *cmos) {
  time_t now = time(NULL);
  struct tm utc;
  gmtime_r(&now, &utc);
  switch (cmos->index) {
  case SECONDS:
    return encode(cmos, utc.tm_sec);
  case MINUTES:
    return encode(cmos, utc.tm_min);
  case HOURS:
    return encode_hour(cmos, utc.tm_hour);
  case WEEKDAY:
    return encode(cmos, utc.tm_wday + 1);
  case DAY:
    return encode(cmos, utc.tm_mday);
  case MONTH:
    return encode(cmos, utc.tm_mon + 1);
  case YEAR:
    return encode(cmos, utc.tm_year % 100);
  case CENTURY:
    return encode(cmos, (utc.tm_year + 1900) / 100);
  case STATUS_A:
    return STATUS_A_DIVIDER;
  case STATUS_C:
    return 0;
  case STATUS_D:
    return STATUS_D_VALID;
  default:
    return cmos->ram[cmos->index];
  }
}

void cmos_write(struct cmos *cmos, uint8_t value) {
  cmos->ram[cmos->index] = value;
}
