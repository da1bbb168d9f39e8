#include "harness.h"
#include "ports.h"

#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PORT SERIAL_PORT

struct fixture {
  struct sink sink;
  struct ports ports;
  int output[2];
  bool irq;
};

static void set_irq(void *context, bool level) {
  ((struct fixture *)context)->irq = level;
}

static struct fixture *setup(void) {
  static struct fixture fixture;
  CHECK(pipe(fixture.output) == 0);
  sink_init(&fixture.sink, fixture.output[1], eventfd(0, EFD_NONBLOCK));
  ports_init(&fixture.ports, &fixture.sink);
  serial_init(&fixture.ports.serial, &fixture.sink, set_irq, &fixture);
  cmos_init(&fixture.ports.cmos, 64 << 20, 0);
  return &fixture;
}

static enum ports_request out(struct fixture *fixture, uint16_t port,
                              uint32_t value) {
  int status;
  return ports_out(&fixture->ports, port, 1, value, &status);
}

static uint32_t in(struct fixture *fixture, uint16_t port) {
  return ports_in(&fixture->ports, port, 1);
}

TEST(serial, bytes_written_come_out_in_order) {
  struct fixture *f = setup();
  out(f, PORT, 'a');
  out(f, PORT, 'b');
  out(f, 0xe9, 'c');
  sink_drain(&f->sink, 1000);
  char text[4] = "";
  CHECK(read(f->output[0], text, 3) == 3);
  CHECK(strcmp(text, "abc") == 0);
}

TEST(serial, loopback_returns_each_byte_once) {
  struct fixture *f = setup();
  out(f, PORT + 2, 0x07);
  out(f, PORT + 4, 0x10);
  for (uint8_t i = 0; i < 16; i++)
    out(f, PORT, i);
  CHECK_EQUAL(in(f, PORT + 5), 0x61);
  out(f, PORT, 99); /* the seventeenth is lost, and says so */
  CHECK_EQUAL(in(f, PORT + 5), 0x63);
  for (uint8_t i = 0; i < 16; i++)
    CHECK_EQUAL(in(f, PORT), i);
  CHECK_EQUAL(in(f, PORT + 5), 0x60);
  CHECK(sink_is_empty(&f->sink));
}

TEST(serial, modem_control_is_seen_in_loopback) {
  struct fixture *f = setup();
  CHECK_EQUAL(in(f, PORT + 6), 0xb0);
  out(f, PORT + 4, 0x1a); /* RTS and OUT2: what Linux probes with */
  CHECK_EQUAL(in(f, PORT + 6) & 0xf0, 0x90);
}

TEST(serial, received_bytes_raise_the_interrupt_until_read) {
  struct fixture *f = setup();
  out(f, PORT + 1, 0x01);
  CHECK(!f->irq);
  serial_receive(&f->ports.serial, 'x');
  CHECK(f->irq);
  CHECK_EQUAL(in(f, PORT + 2), 0x04);
  CHECK_EQUAL(in(f, PORT), 'x');
  CHECK(!f->irq);
  CHECK_EQUAL(in(f, PORT + 2), 0x01);
}

TEST(serial, the_transmit_interrupt_ends_when_it_is_identified) {
  struct fixture *f = setup();
  out(f, PORT + 1, 0x02);
  CHECK(f->irq);
  CHECK_EQUAL(in(f, PORT + 2), 0x02);
  CHECK(!f->irq);
  out(f, PORT, 'x');
  CHECK(f->irq);
}

TEST(serial, a_full_sink_makes_the_guest_wait_and_then_tells_it) {
  struct fixture *f = setup();
  for (int i = 0; i < SINK_RING; i++)
    out(f, PORT, 'x');
  CHECK_EQUAL(in(f, PORT + 5) & 0x60, 0);
  out(f, PORT + 1, 0x02);
  CHECK(!f->irq);
  CHECK(sink_flush(&f->sink));
  serial_transmit_ready(&f->ports.serial);
  CHECK(f->irq);
  CHECK_EQUAL(in(f, PORT + 5) & 0x60, 0x60);
}

TEST(serial, the_divisor_latch_hides_data_and_interrupt_enable) {
  struct fixture *f = setup();
  out(f, PORT + 1, 0x0f);
  out(f, PORT + 3, 0x83);
  out(f, PORT, 0x34);
  out(f, PORT + 1, 0x12);
  CHECK_EQUAL(ports_in(&f->ports, PORT, 2), 0x1234);
  out(f, PORT + 3, 0x03);
  CHECK_EQUAL(in(f, PORT + 1), 0x0f);
  CHECK(sink_is_empty(&f->sink));
}

TEST(sink, a_ring_nobody_reads_keeps_the_latest) {
  struct fixture *f = setup();
  sink_set_drop_oldest(&f->sink, true);
  for (int i = 0; i < SINK_RING + 3; i++)
    sink_put(&f->sink, i < SINK_RING ? 'o' : 'n');
  CHECK_EQUAL(f->sink.ring[(f->sink.head + SINK_RING - 1) % SINK_RING], 'n');
  CHECK_EQUAL(f->sink.count, SINK_RING);
}

TEST(sink, a_reader_that_went_away_loses_the_output_only) {
  struct fixture *f = setup();
  close(f->output[0]);
  signal(SIGPIPE, SIG_IGN);
  sink_put(&f->sink, 'x');
  sink_drain(&f->sink, 100);
  sink_flush(&f->sink);
  sink_put(&f->sink, 'y');
  CHECK(sink_is_empty(&f->sink));
  CHECK(sink_has_room(&f->sink));
}

TEST(ports, the_exit_port_takes_all_widths) {
  struct fixture *f = setup();
  int status;
  CHECK_EQUAL(ports_out(&f->ports, 0xf4, 1, 0x10, &status), PORTS_EXIT);
  CHECK_EQUAL(status, 0x21);
  CHECK_EQUAL(ports_out(&f->ports, 0xf4, 4, 0, &status), PORTS_EXIT);
  CHECK_EQUAL(status, 1);
  CHECK_EQUAL(ports_out(&f->ports, 0xf4, 4, 0xffffffff, &status), PORTS_EXIT);
  CHECK_EQUAL(status, 0xff);
}

TEST(ports, each_way_to_reset_resets_and_nothing_else_does) {
  struct fixture *f = setup();
  int status;
  CHECK_EQUAL(out(f, 0xcf9, 0x02), PORTS_NONE);
  CHECK_EQUAL(out(f, 0xcf9, 0x06), PORTS_RESET);
  CHECK_EQUAL(ports_out(&f->ports, 0xcf8, 4, 0x80000600, &status), PORTS_NONE);
  CHECK_EQUAL(out(f, 0x64, 0xd1), PORTS_NONE);
  CHECK_EQUAL(out(f, 0x64, 0xfe), PORTS_RESET);
  CHECK_EQUAL(out(f, 0x92, 0x02), PORTS_NONE);
  CHECK_EQUAL(out(f, 0x92, 0x03), PORTS_RESET);
}

TEST(ports, sleep_type_5_powers_off) {
  struct fixture *f = setup();
  int status = 1;
  CHECK_EQUAL(ports_in(&f->ports, 0x604, 2), 1);
  CHECK_EQUAL(ports_out(&f->ports, 0x604, 2, 5 << 10, &status), PORTS_NONE);
  CHECK_EQUAL(ports_out(&f->ports, 0x604, 2, 5 << 10 | 1 << 13, &status),
              PORTS_EXIT);
  CHECK_EQUAL(status, 0);
  CHECK_EQUAL(ports_out(&f->ports, 0x604, 2, 3 << 10 | 1 << 13, &status),
              PORTS_NONE);
}

TEST(ports, every_port_in_every_width_is_answered) {
  struct fixture *f = setup();
  int status;
  for (uint32_t port = 0; port <= UINT16_MAX; port++)
    for (unsigned size = 1; size <= 4; size *= 2) {
      ports_in(&f->ports, (uint16_t)port, size);
      ports_out(&f->ports, (uint16_t)port, size, 0xa5a5a5a5, &status);
    }
  CHECK_EQUAL(ports_in(&f->ports, 0x1234, 4), 0xffffffff);
}

TEST(cmos, the_clock_is_valid_bcd_and_never_updating) {
  struct fixture *f = setup();
  out(f, 0x70, 0x0a);
  CHECK_EQUAL(in(f, 0x71) & 0x80, 0);
  static const struct {
    uint8_t index, most;
  } fields[] = {{0, 59}, {2, 59}, {4, 23}, {7, 31}, {8, 12}, {9, 99}};
  for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
    out(f, 0x70, fields[i].index | 0x80);
    uint32_t value = in(f, 0x71);
    CHECK((value & 15) <= 9);
    CHECK((value >> 4) * 10 + (value & 15) <= fields[i].most);
  }
  out(f, 0x70, 0x0d);
  CHECK_EQUAL(in(f, 0x71), 0x80);
}

TEST(cmos, ram_keeps_what_is_written_over_a_reset) {
  struct fixture *f = setup();
  out(f, 0x70, 0x40);
  out(f, 0x71, 0x5a);
  ports_reset(&f->ports);
  out(f, 0x70, 0x40);
  CHECK_EQUAL(in(f, 0x71), 0x5a);
}
