/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cc -o sf-hello hello.c $(pkg-config --cflags --libs libsf) */
#include <snowflock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    sf_ticket *ticket = sf_request_ticket(4, 0);
    int id = ticket ? sf_clone(ticket) : -1;
    char text[64];

    if (id > 0) {
        snprintf(text, sizeof(text), "Hello from clone %d of %d\n", id, sf_count());
        sf_exit_with(0, text, strlen(text));
    }
    if (id < 0 || sf_join(ticket, NULL, 0) < 0) {
        fprintf(stderr, "%s\n", sf_error());
        return 1;
    }
    for (unsigned i = 1; i <= sf_ticket_granted(ticket); i++) {
        char *result = sf_result_get(ticket, i, NULL);

        puts(result ? result : sf_error());
        free(result);
    }
    sf_release(ticket);
    sf_ticket_free(ticket);
    return 0;
}
