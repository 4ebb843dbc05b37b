/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs of the guest that set up network devices: who does at boot, and what those that run must be told in a clone,
 * whose address is no longer what they have set.
 */
#ifndef SF_AGENT_MANAGERS_H
#define SF_AGENT_MANAGERS_H

#include <stdbool.h>

/* TRUE: one of them is installed, so the NIC is not the agent's to set up. */
bool managers_are_there(void);

/* The path of the next script of those whose program runs, NULL: none is left. *next: 0 at first. */
const char *managers_next_script(unsigned *next);

#endif
