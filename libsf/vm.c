/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "libsf/vm.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "libsf/call.h"
#include "snowflock.h"

int sf_vm_self(struct sf_gp_self *self)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = sf_ask(SF_GP_SELF, NULL, 0, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return sf_gp_self_parse(self, reply, (size_t)length) ? 0 : sf_malformed(SF_GP_SELF);
}

int sf_vm_sync(const void *data, size_t length)
{
    struct sf_gp_sync sync = { .offset = 0, .total = length };
    uint8_t argument[SF_GP_SYNC_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_call call;
    ssize_t got;

    if (sf_call_begin(&call) < 0) {
        return -1;
    }
    do {
        size_t piece = length - sync.offset < SF_GP_MAX_CHUNK ? length - sync.offset : SF_GP_MAX_CHUNK;

        sf_gp_sync_pack(argument, &sync);
        got = sf_call_ask(&call, SF_GP_SYNC, argument, sizeof(argument),
                          piece > 0 ? (const char *)data + sync.offset : NULL, piece, reply, sizeof(reply));
        sync.offset += piece;
    } while (got == 0 && sync.offset < length);
    sf_call_end(&call);
    if (got < 0) {
        return -1;
    }
    return got == 0 ? 0 : sf_malformed(SF_GP_SYNC);
}

void sf_vm_end(int status)
{
    uint8_t argument[SF_GP_EXIT_LENGTH], reply[SF_GP_ERROR_LENGTH];

    sf_gp_exit_pack(argument, &(struct sf_gp_exit){ .status = status });
    if (sf_ask(SF_GP_EXIT, argument, sizeof(argument), reply, sizeof(reply)) == 0) {
        for (;;) {
            pause(); /* the host ends this VM */
        }
    }
    fprintf(stderr, "sf_exit: %s\n", sf_error());
}
