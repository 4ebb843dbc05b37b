/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the commands of sf share. One thread.
 */
#ifndef SF_SF_H
#define SF_SF_H

#include <stdbool.h>
#include <stddef.h>

#include "snowflock.h"

/* Exit statuses, sf(1). */
#define EXIT_CLONES  1  /* join: a clone failed, was lost or killed, or ended with a status other than 0 */
#define EXIT_USAGE   2
#define EXIT_TROUBLE 3
#define EXIT_RUNNING 4  /* join --timeout: some clones still run */

/* Prints a message of the command that runs; returns status. */
int trouble(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The error of the last call of libsf: EXIT_TROUBLE. */
int call_failed(void);
/* How the command is used: EXIT_USAGE. */
int bad_usage(void);

bool parse_number(const char *text, int base, unsigned long long max, unsigned long long *number);

/* All of a descriptor in memory for free(), at most SF_MAX_RESULT bytes; NULL, errno. */
char *read_all(int fd, size_t *length);
bool write_all(int fd, const char *data, size_t length);

/* mapreduce.c */
int run_mapreduce(int argc, char **argv);

#endif
