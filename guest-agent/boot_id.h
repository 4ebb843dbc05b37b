/* SPDX-License-Identifier: GPL-2.0-or-later */
/* /proc/sys/kernel/random/boot_id, which clones would have from their parent. */
#ifndef SF_AGENT_BOOT_ID_H
#define SF_AGENT_BOOT_ID_H

/*
 * Puts a file of run_dir in front of the kernel's. Returns it mapped, for boot_id_renew(), until the agent's end; NULL: it
 * cannot be done, the log says why, and clones have their parent's boot ID.
 */
char *boot_id_cover(const char *run_dir);
/* Another random ID, in a clone whose random generator has its new seed. */
void boot_id_renew(char *map);

#endif
