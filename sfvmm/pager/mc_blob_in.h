/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_blob_in: a blob that comes over the group before the pages: gathers its chunks, asks for those that were lost,
 * gives up when that does not help. Logic alone, as mc_receiver, and apart from it: the snapshot's shape is not known
 * yet. One thread.
 *
 *      opened data ---> mc_blob_in_take() ---> MC_BLOB_WHOLE: mc_blob_in_bytes()
 *                            | gaps
 *                            +--> mc_blob_in_poll() --> seal, send          no answer, too slow: MC_BLOB_GIVEN_UP
 *
 * Times are ns of any steady clock.
 */
#ifndef SF_PAGER_MC_BLOB_IN_H
#define SF_PAGER_MC_BLOB_IN_H

#include "sfvmm/pager/mc_datagram.h"

struct mc_blob_in;

enum mc_blob_state { MC_BLOB_WAITED_FOR, MC_BLOB_WHOLE, MC_BLOB_GIVEN_UP };

/* total: bytes, 1 to MC_BLOB_MAX. payload: of the origin's datagrams. seed: of its random delays. */
struct mc_blob_in *mc_blob_in_new(uint64_t id, uint32_t total, unsigned payload, uint64_t seed, int64_t now);
void mc_blob_in_free(struct mc_blob_in *blob);

enum mc_blob_state mc_blob_in_state(const struct mc_blob_in *blob);
const uint8_t *mc_blob_in_bytes(const struct mc_blob_in *blob); /* all of them once it is whole */

/* An opened MC_DATA: header and decrypted content. false: malformed. */
bool mc_blob_in_take(struct mc_blob_in *blob, uint64_t incarnation, uint64_t sequence, const uint8_t *content,
                     size_t length, int64_t now);

/* When mc_blob_in_poll() has something to do; INT64_MAX: never again. */
int64_t mc_blob_in_next(const struct mc_blob_in *blob);

/*
 * Does what is due at `now`: may give up, or write a request to be sealed and sent to the origin into content (room for
 * payload - MC_OVERHEAD bytes). Returns its length, 0: nothing to send.
 */
size_t mc_blob_in_poll(struct mc_blob_in *blob, uint8_t *content, int64_t now);

#endif
