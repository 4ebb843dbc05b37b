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

/* Which of them run and have a script: a set, for managers_next_script(). */
unsigned managers_running(void);

/* Takes the next one out of *set: the path of its script, NULL: none is left. */
const char *managers_next_script(unsigned *set);

#endif
