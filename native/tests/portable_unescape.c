/* The decoder with the loops for machines without SSE2. */
#define KVMGDB_PORTABLE
#define kvmgdb_rsp_unescape portable_rsp_unescape
#include "../src/rsp_unescape.c"
