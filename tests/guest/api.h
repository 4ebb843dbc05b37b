/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The commands of sf-probe that call libsf. One thread.
 */
#ifndef SF_TESTS_API_H
#define SF_TESTS_API_H

#include <stdbool.h>

#define API_TEXT 4096

/* Do one command; text (API_TEXT bytes) is the answer. False: it failed, text says how. */
bool api_command(char **words, int count, char *text);

#endif
