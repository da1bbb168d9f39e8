/* What this host's KVM really does, tried on a virtual machine of our own. */
#ifndef KVMGDB_AGENT_PROBE_H
#define KVMGDB_AGENT_PROBE_H

#include <stdbool.h>

/*
 * Whether KVM reports writes to a watched address. A KVM that interprets guest
 * code (a nested host without VMX or SVM) takes the debug registers, but acts
 * on those for execution only. True also where it cannot be tried.
 */
bool probe_watchpoints(void);

#endif
