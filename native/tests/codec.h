/* Both builds of the codec, to run the same tests on. */
#ifndef KVMGDB_TESTS_CODEC_H
#define KVMGDB_TESTS_CODEC_H

#include <kvmgdb/kvmgdb.h>

struct codec {
  uint8_t (*checksum)(const void *, size_t);
  size_t (*frame)(const void *, size_t, int, int, void *);
  size_t (*frame_hex)(const void *, size_t, const void *, size_t, int, void *);
  size_t (*frame_binary)(const void *, size_t, const void *, size_t, int,
                         void *);
  enum kvmgdb_status (*unescape)(const void *, size_t, int, void *, size_t,
                                 size_t *, struct kvmgdb_error *);
};

uint8_t portable_rsp_checksum(const void *, size_t);
size_t portable_rsp_frame(const void *, size_t, int, int, void *);
size_t portable_rsp_frame_hex(const void *, size_t, const void *, size_t, int,
                              void *);
size_t portable_rsp_frame_binary(const void *, size_t, const void *, size_t,
                                 int, void *);
enum kvmgdb_status portable_rsp_unescape(const void *, size_t, int, void *,
                                         size_t, size_t *,
                                         struct kvmgdb_error *);

static const struct codec codecs[] = {
    {kvmgdb_rsp_checksum, kvmgdb_rsp_frame, kvmgdb_rsp_frame_hex,
     kvmgdb_rsp_frame_binary, kvmgdb_rsp_unescape},
    {portable_rsp_checksum, portable_rsp_frame, portable_rsp_frame_hex,
     portable_rsp_frame_binary, portable_rsp_unescape},
};

#define FOR_EACH_CODEC(codec)                                                  \
  for (const struct codec *codec = codecs; codec < codecs + 2; codec++)

#endif
