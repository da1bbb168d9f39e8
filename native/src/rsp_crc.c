/* Eight bytes a step: tables[n][b] is the CRC of byte b followed by n zeros. */
#include <pthread.h>

#include <kvmgdb/kvmgdb.h>

#define POLYNOMIAL UINT32_C(0x04c11db7)
#define STEP 8

static uint32_t tables[STEP][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void fill_tables(void) {
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte << 24;
    for (int bit = 0; bit < 8; bit++)
      crc = crc << 1 ^ (crc >> 31 ? POLYNOMIAL : 0);
    tables[0][byte] = crc;
  }
  for (int zeros = 1; zeros < STEP; zeros++)
    for (int byte = 0; byte < 256; byte++) {
      uint32_t crc = tables[zeros - 1][byte];
      tables[zeros][byte] = crc << 8 ^ tables[0][crc >> 24];
    }
}

uint32_t kvmgdb_rsp_crc(uint32_t crc, const void *data, size_t length) {
  pthread_once(&tables_once, fill_tables);
  const uint8_t *byte = data;
  for (; length >= STEP; length -= STEP, byte += STEP)
    crc = tables[7][byte[0] ^ crc >> 24] ^
          tables[6][byte[1] ^ (crc >> 16 & 0xff)] ^
          tables[5][byte[2] ^ (crc >> 8 & 0xff)] ^
          tables[4][byte[3] ^ (crc & 0xff)] ^ tables[3][byte[4]] ^
          tables[2][byte[5]] ^ tables[1][byte[6]] ^ tables[0][byte[7]];
  for (; length; length--)
    crc = crc << 8 ^ tables[0][*byte++ ^ crc >> 24];
  return crc;
}
