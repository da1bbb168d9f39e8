#include "plant.h"
#include <errno.h>
#include <unistd.h>

static const uint8_t int3 = 0xcc;

enum kvmgdb_agent_status plant_byte(struct session *session, int place,
                                    uint64_t hva, struct agent_error *error) {
  struct journal_plant *plant = &session->journal->plant[place];
  uint8_t original;
  if (pread(session->memory_fd, &original, 1, (off_t)hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_INVALID, errno, -1, (int64_t)hva);
  plant->hva = hva;
  plant->original = original;
  __atomic_store_n(&plant->planted, 1, __ATOMIC_RELEASE);
  if (pwrite(session->memory_fd, &int3, 1, (off_t)hva) == 1)
    return KVMGDB_AGENT_OK;
  int reason = errno;
  __atomic_store_n(&plant->planted, 0, __ATOMIC_RELEASE);
  return agent_fail(error, KVMGDB_AGENT_INVALID, reason, -1, (int64_t)hva);
}

enum kvmgdb_agent_status plant_remove(struct session *session, int place,
                                      struct agent_error *error) {
  struct journal_plant *plant = &session->journal->plant[place];
  if (!plant->planted)
    return KVMGDB_AGENT_OK;
  uint8_t now = 0;
  /* A guest that has written other code there since keeps it. */
  bool ours =
      pread(session->memory_fd, &now, 1, (off_t)plant->hva) == 1 && now == int3;
  if (ours &&
      pwrite(session->memory_fd, &plant->original, 1, (off_t)plant->hva) != 1)
    return agent_fail(error, KVMGDB_AGENT_HOST, errno, -1, (int64_t)plant->hva);
  __atomic_store_n(&plant->planted, 0, __ATOMIC_RELEASE);
  return KVMGDB_AGENT_OK;
}

void plant_remove_all(struct session *session) {
  struct agent_error ignored;
  for (int i = 0; i < KVMGDB_AGENT_MAX_BREAKPOINTS; i++)
    plant_remove(session, i, &ignored);
}
