#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest.h"
#include "harness.h"

#define RAM (8u << 20)
#define TABLES 0x400000
#define BASE UINT64_C(0xffff888000000000)
#define LONG UINT64_C(10000000000)
#define SHORT UINT64_C(1000000)

/* A debugger's end of a connection, and ours. */
struct line {
  int debugger;
  int server;
};

static void line_close(struct line *line) {
  close(line->debugger);
  close(line->server);
}
#define LINE __attribute__((cleanup(line_close))) struct line

static struct line line_open(void) {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  return (struct line){ends[0], ends[1]};
}

static void say(const struct line *line, const void *data, size_t length) {
  CHECK(send(line->debugger, data, length, MSG_DONTWAIT) == (ssize_t)length);
}

/* What is there for the debugger. */
static size_t hear(const struct line *line, uint8_t *data, size_t capacity) {
  ssize_t size = recv(line->debugger, data, capacity, MSG_DONTWAIT);
  return size < 0 ? 0 : (size_t)size;
}

struct outcome {
  size_t received;
  size_t unsent;
  int preempted;
  uint8_t buffer[256];
  uint8_t reply[KVMGDB_RSP_REPLY_MAX];
};

static void attend(const struct guest *guest, const struct line *line,
                   uint64_t awake, struct outcome *outcome) {
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_rsp_attend(
                  guest ? guest->memory : NULL, guest ? &guest->paging : NULL,
                  line->server, awake, LONG, outcome->buffer,
                  sizeof(outcome->buffer), &outcome->received, outcome->reply,
                  &outcome->unsent, &outcome->preempted, &error),
              KVMGDB_OK);
}

static struct guest mapped_guest(void) {
  struct guest guest = guest_create(KVMGDB_PAGING_4LEVEL, RAM, TABLES);
  fill_pattern(guest.ram, TABLES, 1);
  memset(guest.ram + 0x3100, 0, 0x200);
  guest_map(&guest, BASE, 0x5000, 1, 0);
  guest_map(&guest, BASE + 0x1000, 0x3000, 1, 0);
  guest_map(&guest, BASE + 0x3000, 0x4000, 1, 0);
  guest_map(&guest, BASE + 0x200000, 0x200000, 2, BIG);
  return guest;
}

static size_t packet(const char *payload, char *out, size_t capacity) {
  unsigned checksum = kvmgdb_rsp_checksum(payload, strlen(payload));
  return (size_t)snprintf(out, capacity, "$%s#%02x", payload, checksum);
}

static size_t request(char command, uint64_t gva, uint64_t length, char *out) {
  char payload[64];
  snprintf(payload, sizeof(payload), "%c%llx,%llx", command,
           (unsigned long long)gva, (unsigned long long)length);
  return packet(payload, out, 80);
}

/* The frame that the library's other functions make of the same memory. */
static size_t expected_frame(struct guest *guest, char command, uint64_t gva,
                             size_t length, uint8_t *frame) {
  uint8_t data[KVMGDB_RSP_READ_MAX];
  size_t done;
  CHECK_EQUAL(kvmgdb_virtual_read(guest->memory, &guest->paging, gva, data,
                                  length, &done, NULL),
              KVMGDB_OK);
  return command == 'm'
             ? kvmgdb_rsp_frame_hex("", 0, data, length, 1, frame)
             : kvmgdb_rsp_frame_binary("b", 1, data, length, 1, frame);
}

static void check_answered(struct guest *guest, const struct line *line,
                           const char *text, size_t size, char command,
                           uint64_t gva, size_t length) {
  static uint8_t expected[KVMGDB_RSP_REPLY_MAX], heard[KVMGDB_RSP_REPLY_MAX];
  static struct outcome outcome;
  say(line, text, size);
  attend(guest, line, SHORT, &outcome);
  CHECK_EQUAL(outcome.received, 0);
  CHECK_EQUAL(outcome.unsent, 0);
  size_t expected_size = expected_frame(guest, command, gva, length, expected);
  CHECK_EQUAL(hear(line, heard, sizeof(heard)), expected_size);
  CHECK(memcmp(heard, expected, expected_size) == 0);
}

static void check_left(struct guest *guest, const struct line *line,
                       const void *data, size_t size) {
  static struct outcome outcome;
  uint8_t heard[16];
  say(line, data, size);
  attend(guest, line, LONG, &outcome);
  CHECK_EQUAL(outcome.received, size);
  CHECK(memcmp(outcome.buffer, data, size) == 0);
  CHECK_EQUAL(outcome.unsent, 0);
  CHECK_EQUAL(hear(line, heard, sizeof(heard)), 0);
}

TEST(rsp_attend, memory_reads_are_answered) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  const struct {
    uint64_t gva;
    size_t length;
  } reads[] = {
      {BASE, 1},           {BASE + 7, 64},          {BASE + 0xfff, 2},
      {BASE + 0xff0, 64},  {BASE + 0x800, 0x1000},  {BASE + 1, 0x1000},
      {BASE + 0x1fff, 1},  {BASE + 0x3000, 0x1000}, {BASE + 0x1100, 0x180},
      {BASE + 0x2ffffc, 4}};
  for (const char *command = "mx"; *command; command++)
    for (size_t i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
      char text[80];
      size_t size = request(*command, reads[i].gva, reads[i].length, text);
      check_answered(&guest, &line, text, size, *command, reads[i].gva,
                     reads[i].length);
    }
}

TEST(rsp_attend, digits_may_be_capital_or_zeros) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  char text[80];
  size_t size = packet("mFFFF888000000abC,0000000000000010", text, 80);
  check_answered(&guest, &line, text, size, 'm', BASE + 0xabc, 16);
  /* The checksum of this one has a letter in it. */
  size = packet("mffff888000000000,0e", text, sizeof(text));
  CHECK(text[size - 1] >= 'a' || text[size - 2] >= 'a');
  for (size_t i = size - 2; i < size; i++)
    if (text[i] >= 'a')
      text[i] -= 0x20;
  check_answered(&guest, &line, text, size, 'm', BASE, 14);
}

TEST(rsp_attend, what_is_no_whole_memory_read_is_left) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  const char *payloads[] = {
      "",
      "g",
      "?",
      "m",
      "m,",
      "mffff888000000000",
      "mffff888000000000,",
      "m,10",
      "mffff888000000000,10,",
      "mffff888000000000,10:00",
      "mffff888000000000,1 ",
      "m ffff888000000000,1",
      "mffff888000000000,0x1",
      "m-1,1",
      "mffff888000000000;1",
      "mffff888000000000,0",
      "mffff888000000000,1001",
      "mffff888000000000,ffffffffffffffff",
      "m0ffff888000000000,1",
      "mffff888000000000,00000000000000001",
      "mffffffffffffffff,2",
      "m0,1",
      "mffff888000002000,1",
      "mffff888000001ff0,20",
      "m0000800000000000,1",
      "Mffff888000000000,1:00",
      "Xffff888000000000,1:a",
      "pffff888000000000,1",
      "mffff888000000000,g",
  };
  for (size_t i = 0; i < sizeof(payloads) / sizeof(payloads[0]); i++) {
    char text[80];
    size_t size = packet(payloads[i], text, sizeof(text));
    check_left(&guest, &line, text, size);
  }
  const char *texts[] = {
      "$mffff888000000000,1#00",
      "$mffff888000000000,1#gg",
      "$mffff888000000000,1",
      "$mffff888000000000,1#",
      "\003",
      "+",
      "-",
      "#",
      "$#00",
      "m#########",
      "$m,######",
      "$m1,#####",
  };
  for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
    check_left(&guest, &line, texts[i], strlen(texts[i]));
}

TEST(rsp_attend, what_comes_with_something_else_is_left) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  char text[160];
  size_t size = request('m', BASE, 4, text);
  memcpy(text + size, text, size);
  check_left(&guest, &line, text, 2 * size);
  text[size] = '+';
  check_left(&guest, &line, text, size + 1);
  memmove(text + 1, text, size);
  text[0] = '+';
  check_left(&guest, &line, text, size + 1);
}

TEST(rsp_attend, any_damage_is_left_or_is_another_read) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  uint64_t state = 99;
  for (int round = 0; round < 20000; round++) {
    static struct outcome outcome;
    uint8_t text[80], heard[KVMGDB_RSP_REPLY_MAX];
    size_t size = request(round & 1 ? 'm' : 'x', BASE + 0x20, 16, (char *)text);
    for (uint64_t flips = random_next(&state) % 3 + 1; flips; flips--)
      text[random_next(&state) % size] = (uint8_t)random_next(&state);
    size -= random_next(&state) % 4 == 0 ? random_next(&state) % size : 0;
    say(&line, text, size);
    attend(&guest, &line, SHORT, &outcome);
    size_t answer = hear(&line, heard, sizeof(heard));
    if (outcome.received) {
      CHECK_EQUAL(outcome.received, size);
      CHECK(memcmp(outcome.buffer, text, size) == 0);
      CHECK_EQUAL(answer, 0);
      continue;
    }
    unsigned long long gva, length;
    unsigned checksum;
    char end;
    text[size] = '\0';
    CHECK(sscanf((char *)text + 2, "%llx,%llx#%2x%c", &gva, &length, &checksum,
                 &end) == 3);
    CHECK_EQUAL(checksum, kvmgdb_rsp_checksum(text + 1, size - 4));
    uint8_t expected[KVMGDB_RSP_REPLY_MAX];
    CHECK_EQUAL(answer,
                expected_frame(&guest, (char)text[1], gva, length, expected));
    CHECK(memcmp(heard, expected, answer) == 0);
  }
}

static int read_zeros(void *context, uint64_t gpa, void *buffer,
                      size_t length) {
  (void)gpa;
  (*(int *)context)++;
  memset(buffer, 0, length);
  return 0;
}

TEST(rsp_attend, nothing_is_answered_without_memory_or_by_a_callback) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  char text[80];
  size_t size = request('m', BASE, 4, text);
  check_left(NULL, &line, text, size);
  int calls = 0;
  CHECK_EQUAL(kvmgdb_memory_add_callback(guest.memory, RAM, 0x1000, read_zeros,
                                         NULL, &calls, NULL),
              KVMGDB_OK);
  check_left(&guest, &line, text, size);
  CHECK_EQUAL(calls, 0);
}

TEST(rsp_attend, a_call_sees_tables_that_changed_since_the_last) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  char text[80];
  size_t size = request('m', BASE + 0x10, 16, text);
  for (uint64_t page = 0; page < 20; page++) {
    guest_map(&guest, BASE, page << 12, 1, 0);
    check_answered(&guest, &line, text, size, 'm', BASE + 0x10, 16);
  }
  guest_set(&guest, guest_entry(&guest, BASE, 1), 0);
  check_left(&guest, &line, text, size);
}

TEST(rsp_attend, it_waits_no_longer_than_it_is_told) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  static struct outcome outcome;
  attend(&guest, &line, SHORT, &outcome);
  CHECK_EQUAL(outcome.received, 0);
  attend(&guest, &line, 0, &outcome);
  CHECK_EQUAL(outcome.received, 0);
  /* The end of the stream is no packet, and is not waited for. */
  shutdown(line.debugger, SHUT_WR);
  attend(&guest, &line, LONG, &outcome);
  CHECK_EQUAL(outcome.received, 0);
}

TEST(rsp_attend, what_the_socket_does_not_take_is_given_back) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  int small = 1;
  CHECK(setsockopt(line.server, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) ==
        0);
  static uint8_t expected[KVMGDB_RSP_REPLY_MAX], heard[KVMGDB_RSP_REPLY_MAX];
  size_t size = expected_frame(&guest, 'm', BASE, 0x1000, expected);
  char text[80];
  size_t length = request('m', BASE, 0x1000, text);
  static struct outcome outcome;
  size_t asked = 0, sent = 0;
  /* As many answers as it takes until the debugger's end is full. */
  for (outcome.unsent = 0; !outcome.unsent && asked < 1000; asked++) {
    say(&line, text, length);
    attend(&guest, &line, SHORT, &outcome);
    CHECK_EQUAL(outcome.received, 0);
  }
  CHECK(outcome.unsent && outcome.unsent <= size);
  CHECK(memcmp(outcome.reply, expected + size - outcome.unsent,
               outcome.unsent) == 0);
  for (size_t got; (got = hear(&line, heard, sizeof(heard))); sent += got)
    for (size_t i = 0; i < got; i++)
      CHECK_EQUAL(heard[i], expected[(sent + i) % size]);
  CHECK_EQUAL(sent + outcome.unsent, asked * size);
}

TEST(rsp_attend, wrong_arguments_are_refused) {
  GUEST guest = mapped_guest();
  LINE line = line_open();
  uint8_t buffer[8], reply[KVMGDB_RSP_REPLY_MAX];
  size_t received, unsent;
  int preempted;
  struct kvmgdb_error error;
  CHECK_EQUAL(kvmgdb_rsp_attend(guest.memory, NULL, line.server, 1, 1, buffer,
                                sizeof(buffer), &received, reply, &unsent,
                                &preempted, &error),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_rsp_attend(guest.memory, &guest.paging, line.server, 1, 1,
                                buffer, 0, &received, reply, &unsent,
                                &preempted, &error),
              KVMGDB_ERR_INVALID);
  CHECK_EQUAL(kvmgdb_rsp_attend(NULL, NULL, -1, LONG, LONG, buffer,
                                sizeof(buffer), &received, reply, &unsent,
                                &preempted, &error),
              KVMGDB_OK);
  CHECK_EQUAL(received, 0);
}
