/*
 * Port I/O and MMIO without end, on one vCPU, such that a lost or a repeated
 * access shows. The serial port is in loopback: each byte written comes back
 * once, in order, so that a write or a read too many or too few shifts all
 * that follow. MMIO is read by an instruction that adds what it read: executed
 * twice or skipped, it changes the sum.
 *
 *   progress[0]   rounds; each is 8 OUT, 8 IN, 8 bytes by REP OUTS and REP
 *                 INS, 4 MMIO reads and 4 MMIO writes
 *   io_checksum   u64, over everything read
 *   io_expected   u64, the same from what was written: equal after each round
 *   io_errors     u64, rounds in which they were not
 *   io_out_here, io_in_here, io_outs_here, io_ins_here, io_read_here,
 *   io_write_here the instructions (io_read_here, io_write_here: MMIO)
 *
 * The MMIO address is IO_MMIO: nothing in kvmgdb-vmm, the HPET's read-only
 * capabilities in QEMU.
 */
#include "guest.h"

#define SERIAL 0x3f8
#define FIFO_ENABLE_AND_CLEAR 0x07
#define MODEM_LOOPBACK 0x10
#define LINE_8N1 0x03
#define IO_MMIO 0xfed00000UL
#define BURST 8
#define MMIO_ROUNDS 4

const char guest_name[] = "io";
const unsigned guest_cpus = 1;

volatile uint64_t io_checksum;
volatile uint64_t io_expected;
volatile uint64_t io_errors;

static uint8_t sequence;
static uint8_t expected_sequence;

static uint64_t mix(uint64_t sum, uint64_t value) {
  return (sum << 7 | sum >> 57) + value;
}

__attribute__((noinline)) static void write_byte(uint8_t value) {
  __asm__ volatile(".global io_out_here\nio_out_here: outb %%al, %%dx"
                   :
                   : "a"(value), "d"(SERIAL)
                   : "memory");
}

__attribute__((noinline)) static uint8_t read_byte(void) {
  uint8_t value;
  __asm__ volatile(".global io_in_here\nio_in_here: inb %%dx, %%al"
                   : "=a"(value)
                   : "d"(SERIAL)
                   : "memory");
  return value;
}

__attribute__((noinline)) static void write_string(const uint8_t *bytes) {
  uint64_t count = BURST;
  __asm__ volatile(".global io_outs_here\nio_outs_here: rep outsb"
                   : "+S"(bytes), "+c"(count)
                   : "d"(SERIAL)
                   : "memory");
}

__attribute__((noinline)) static void read_string(uint8_t *bytes) {
  uint64_t count = BURST;
  __asm__ volatile(".global io_ins_here\nio_ins_here: rep insb"
                   : "+D"(bytes), "+c"(count)
                   : "d"(SERIAL)
                   : "memory");
}

__attribute__((noinline)) static uint32_t add_mmio(uint32_t sum) {
  __asm__ volatile(".global io_read_here\nio_read_here: addl (%1), %0"
                   : "+r"(sum)
                   : "r"(IO_MMIO)
                   : "memory", "cc");
  return sum;
}

__attribute__((noinline)) static void write_mmio(uint32_t value) {
  __asm__ volatile(".global io_write_here\nio_write_here: movl %0, (%1)"
                   :
                   : "r"(value), "r"(IO_MMIO)
                   : "memory");
}

static void round_of_ports(void) {
  uint8_t bytes[BURST];
  for (int i = 0; i < BURST; i++)
    write_byte(sequence++);
  for (int i = 0; i < BURST; i++)
    io_checksum = mix(io_checksum, read_byte());
  for (int i = 0; i < BURST; i++)
    bytes[i] = sequence++;
  write_string(bytes);
  for (int i = 0; i < BURST; i++)
    bytes[i] = 0;
  read_string(bytes);
  for (int i = 0; i < BURST; i++)
    io_checksum = mix(io_checksum, bytes[i]);
  for (int i = 0; i < 2 * BURST; i++)
    io_expected = mix(io_expected, expected_sequence++);
}

static void round_of_mmio(uint32_t constant) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < MMIO_ROUNDS; i++) {
    sum = add_mmio(sum);
    write_mmio(i);
  }
  io_checksum = mix(io_checksum, sum);
  io_expected = mix(io_expected, constant * MMIO_ROUNDS);
}

void guest_main(unsigned cpu) {
  outb(SERIAL + 1, 0);
  outb(SERIAL + 3, LINE_8N1);
  outb(SERIAL + 4, MODEM_LOOPBACK);
  outb(SERIAL + 2, FIFO_ENABLE_AND_CLEAR);
  uint32_t constant = read_memory32(IO_MMIO);
  for (;;) {
    round_of_ports();
    round_of_mmio(constant);
    if (io_checksum != io_expected)
      io_errors++;
    progress[cpu]++;
  }
}
