#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "guest.h"
#include "harness.h"

static void check_frame(const char *frame, size_t size, const char *expected) {
  if (size != strlen(expected) || memcmp(frame, expected, size) != 0)
    harness_fail(__FILE__, __LINE__, "the frame is %.*s, not %s", (int)size,
                 frame, expected);
}

TEST(rsp, frames_carry_their_checksum) {
  FOR_EACH_CODEC(codec) {
    char out[64];
    check_frame(out, codec->frame("OK", 2, 0, 0, out), "$OK#9a");
    check_frame(out, codec->frame("", 0, 0, 1, out), "$#00");
    check_frame(out, codec->frame("T05thread:p01.01;", 17, 0, 0, out),
                "$T05thread:p01.01;#06");
  }
}

TEST(rsp, runs_are_written_as_the_manual_says) {
  FOR_EACH_CODEC(codec) {
    char out[256];
    check_frame(out, codec->frame("0000", 4, 0, 1, out), "$0* #7a");
    check_frame(out, codec->frame("000", 3, 0, 1, out), "$000#90");
    check_frame(out, codec->frame("00", 2, 0, 1, out), "$00#60");
    /* Six and seven more would be '#' and '$': five and the rest. */
    check_frame(out, codec->frame("0000000", 7, 0, 1, out), "$0*\"0#ac");
    check_frame(out, codec->frame("00000000", 8, 0, 1, out), "$0*\"00#dc");
    check_frame(out, codec->frame("000000000", 9, 0, 1, out), "$0*%#7f");
  }
}

/* What a decoder of the manual's text makes of a frame without escapes. */
static size_t expand(const char *payload, size_t length, char *out) {
  size_t size = 0;
  for (size_t i = 0; i < length; i++) {
    if (payload[i] != '*') {
      out[size++] = payload[i];
      continue;
    }
    int count = payload[++i] - 29;
    CHECK(count >= 3 && payload[i] <= 126);
    CHECK(!strchr("#$+-", payload[i]));
    for (; count; count--, size++)
      out[size] = out[size - 1];
  }
  return size;
}

TEST(rsp, runs_of_every_length_survive) {
  FOR_EACH_CODEC(codec) {
    for (size_t length = 1; length < 400; length++) {
      char payload[402], out[2 * 402 + 4], back[402];
      memset(payload, 'x', length);
      payload[length] = 'y';
      size_t size = codec->frame(payload, length + 1, 0, 1, out);
      CHECK_EQUAL(expand(out + 1, size - 4, back), length + 1);
      CHECK(memcmp(back, payload, length + 1) == 0);
      CHECK(length < 10 || size < length + 5);
      size_t got;
      CHECK_EQUAL(
          codec->unescape(out + 1, size - 4, 1, back, sizeof(back), &got, NULL),
          KVMGDB_OK);
      CHECK_EQUAL(got, length + 1);
      CHECK(memcmp(back, payload, length + 1) == 0);
    }
  }
}

TEST(rsp, a_text_that_needs_escapes_makes_no_frame) {
  FOR_EACH_CODEC(codec) {
    const char specials[] = {'#', '$', '}', '*'};
    for (size_t i = 0; i < 4; i++)
      for (size_t place = 0; place < 40; place++) {
        char payload[40], out[84];
        memset(payload, 'a', sizeof(payload));
        payload[place] = specials[i];
        CHECK_EQUAL(codec->frame(payload, sizeof(payload), 0, 0, out), 0);
        CHECK_EQUAL(codec->frame(payload, sizeof(payload), 0, 1, out), 0);
        CHECK_EQUAL(codec->frame(payload, sizeof(payload), 1, 0, out), 45);
      }
  }
}

TEST(rsp, every_byte_survives_as_binary_and_as_hex) {
  uint8_t data[256], out[2 * 256 + 10], back[256];
  for (int i = 0; i < 256; i++)
    data[i] = (uint8_t)i;
  FOR_EACH_CODEC(codec) {
    size_t size = codec->frame_binary("b", 1, data, sizeof(data), 0, out);
    CHECK_EQUAL(size, 1 + 1 + 256 + 4 + 3);
    CHECK(memcmp(out, "$b", 2) == 0);
    CHECK(!memchr(out + 1, '$', size - 1) && !memchr(out + 1, '*', size - 1));
    CHECK((uint8_t *)memchr(out, '#', size) == out + size - 3);
    size_t got;
    CHECK_EQUAL(
        codec->unescape(out + 2, size - 5, 1, back, sizeof(back), &got, NULL),
        KVMGDB_OK);
    CHECK(got == sizeof(data) && memcmp(back, data, sizeof(data)) == 0);
    size = codec->frame_hex("", 0, data, sizeof(data), 0, out);
    CHECK_EQUAL(size, 512 + 4);
    for (int i = 0; i < 256; i++) {
      char text[3];
      snprintf(text, sizeof(text), "%02x", i);
      CHECK(memcmp(out + 1 + 2 * i, text, 2) == 0);
    }
  }
}

TEST(rsp, the_longest_frames_fit_where_the_header_says) {
  FOR_EACH_CODEC(codec) {
    for (size_t length = 0; length < 100; length++) {
      /* Exactly as large as promised: the sanitizer watches the ends. */
      uint8_t *data = malloc(length + 1), *out = malloc(2 * length + 4);
      memset(data, '#', length);
      CHECK_EQUAL(codec->frame(data, length, 1, 0, out), 2 * length + 4);
      CHECK_EQUAL(codec->frame_binary("", 0, data, length, 0, out),
                  2 * length + 4);
      CHECK_EQUAL(codec->frame_hex("", 0, data, length, 0, out),
                  2 * length + 4);
      free(data);
      free(out);
    }
  }
}

TEST(rsp, what_is_cut_off_or_too_long_is_refused) {
  struct {
    const char *payload;
    int runs;
    size_t capacity;
    const char *result; /* NULL: refused */
  } cases[] = {
      {"abc}", 0, 9, NULL},
      {"abc*", 1, 9, NULL},
      {"*!", 1, 9, NULL},
      {"a*\x1f", 1, 999, NULL},
      {"a*\x7f", 1, 999, NULL},
      {"a*\xff", 1, 999, NULL},
      {"a* ", 1, 3, NULL},
      {"a* ", 1, 4, "aaaa"},
      {"abcd", 0, 3, NULL},
      {"", 1, 0, ""},
      {"}\x03}\x04}]}\n", 1, 9, "#$}*"},
      {"a*!b", 0, 9, "a*!b"},
      {"a* * ", 1, 9, "aaaaaaa"},
      {"}*", 0, 9, "\n"},
      {"0123456789abcdef* ", 1, 99, "0123456789abcdeffff"},
      /* The run is of the byte as it was sent, here half of an escape. */
      {"}\x03* ", 1, 9, "#\x03\x03\x03"},
      {"}* ", 1, 9, "]]"},
      {"}*!", 1, 9, NULL},
  };
  FOR_EACH_CODEC(codec) {
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
      char *out = malloc(cases[i].capacity + !cases[i].capacity);
      struct kvmgdb_error error = {0};
      size_t size = 99;
      enum kvmgdb_status status =
          codec->unescape(cases[i].payload, strlen(cases[i].payload),
                          cases[i].runs, out, cases[i].capacity, &size, &error);
      CHECK_EQUAL(status, cases[i].result ? KVMGDB_OK : KVMGDB_ERR_INVALID);
      CHECK_EQUAL(error.status, status);
      CHECK(size <= cases[i].capacity);
      if (cases[i].result) {
        CHECK_EQUAL(size, strlen(cases[i].result));
        CHECK(memcmp(out, cases[i].result, size) == 0);
      }
      free(out);
    }
  }
}

TEST(rsp, checksums_of_every_length) {
  uint8_t data[300];
  memset(data, 0xff, sizeof(data));
  FOR_EACH_CODEC(codec) {
    for (size_t length = 0; length < sizeof(data); length++)
      CHECK_EQUAL(codec->checksum(data, length), (uint8_t)(0xff * length));
  }
}

TEST(rsp, crc_is_that_of_the_manual) {
  /* The check value of CRC-32/MPEG-2: this polynomial and start, no final
   * inversion. */
  CHECK_EQUAL(kvmgdb_rsp_crc(0xffffffff, "123456789", 9), 0x0376e6e7);
  CHECK_EQUAL(kvmgdb_rsp_crc(0xffffffff, "", 0), 0xffffffff);
  uint8_t data[1000];
  fill_pattern(data, sizeof(data), 8);
  uint32_t slow = 0xffffffff;
  for (size_t i = 0; i < sizeof(data); i++) {
    slow ^= (uint32_t)data[i] << 24;
    for (int bit = 0; bit < 8; bit++)
      slow = slow << 1 ^ (slow >> 31) * 0x04c11db7;
  }
  for (size_t cut = 0; cut <= sizeof(data); cut += 37)
    CHECK_EQUAL(kvmgdb_rsp_crc(kvmgdb_rsp_crc(0xffffffff, data, cut),
                               data + cut, sizeof(data) - cut),
                slow);
}
