/* Numbers of the remote protocol that both directions use. */
#ifndef KVMGDB_RSP_H
#define KVMGDB_RSP_H

#include <kvmgdb/kvmgdb.h>

#define RSP_ESCAPE '}'
#define RSP_ESCAPE_BIT                                                         \
  0x20 /* an escaped byte is sent with this bit flipped                        \
        */

/*
 * "x*N" is x and then N - 29 more of it. N is printable: 32 (a space) to 126.
 */
#define RSP_RUN '*'
#define RSP_RUN_BIAS 29
#define RSP_RUN_MIN (32 - RSP_RUN_BIAS)
#define RSP_RUN_MAX (126 - RSP_RUN_BIAS)

#endif
