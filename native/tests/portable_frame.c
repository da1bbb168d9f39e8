/* The frame encoder with the loops for machines without SSE2. */
#define KVMGDB_PORTABLE
#define kvmgdb_rsp_checksum portable_rsp_checksum
#define kvmgdb_rsp_frame portable_rsp_frame
#define kvmgdb_rsp_frame_hex portable_rsp_frame_hex
#define kvmgdb_rsp_frame_binary portable_rsp_frame_binary
#include "../src/rsp_frame.c"
