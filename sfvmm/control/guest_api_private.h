/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What guest_api.c and guest_snapshot.c share. */
#ifndef SF_GUEST_API_PRIVATE_H
#define SF_GUEST_API_PRIVATE_H

#include "sfvmm/control/guest_api.h"

/* A frame of a guest's agent. */
typedef struct {
    SfHost *host;
    SfGuestApi *api;
    SfHostVm *hvm;
    const struct sf_gp_header *header;
    const guint8 *payload;
    gsize length;
} SfGuestRequest;

/* Answers; one that can't be sent is lost, the agent asks again. */
void sf_guest_answer(SfHostVm *hvm, guint8 type, guint32 request, const void *payload, gsize length);
void sf_guest_answer_error(SfHostVm *hvm, guint32 request, int code, const char *text);
int sf_guest_error_number(const GError *error); /* errno as libsf gives it to the program */

/* guest_snapshot.c: each answers, now or later; one that is repeated meanwhile has no second effect. */
void sf_guest_checkpoint(const SfGuestRequest *request);
void sf_guest_create(const SfGuestRequest *request);
void sf_guest_forget(const SfGuestRequest *request);

#endif
