/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Says on a device in a network namespace where a member is, in its name: an ARP announcement (RFC 5227). The tunnels
 * of other hosts learn from it by which host its MAC is reached, should they remember a clone that had the same MAC
 * elsewhere. Main thread.
 */
#ifndef SF_ANNOUNCER_H
#define SF_ANNOUNCER_H

#include "sfvmm/net/rules.h"

typedef struct SfAnnouncer SfAnnouncer;

SfAnnouncer *sf_announcer_new(int netns, const char *device, GError **error);
void sf_announcer_free(SfAnnouncer *announcer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfAnnouncer, sf_announcer_free)

/* An announcement that can't be sent is one that was lost: what the member sends itself says the same. */
void sf_announcer_tell(SfAnnouncer *announcer, const SfNetMember *member);

#endif
