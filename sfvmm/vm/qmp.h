/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfQmp: one connection to a QEMU's monitor. Commands go out as they are asked for, without waiting for the answers of
 * those before; QEMU works them off in order. Main thread only.
 */
#ifndef SF_QMP_H
#define SF_QMP_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

/* ---- what QEMU says ---- */

typedef enum { SF_QMP_GREETING, SF_QMP_RETURN, SF_QMP_ERROR, SF_QMP_EVENT } SfQmpKind;

typedef struct {
    SfQmpKind kind;
    guint64 id;       /* RETURN, ERROR: of the command */
    JsonNode *result; /* RETURN */
    char *text;       /* ERROR: QEMU's description; EVENT: its name */
    JsonObject *data; /* EVENT: may be NULL */
} SfQmpMessage;

/* Strict: TRUE and *message filled in (sf_qmp_message_clear() it), or an error that says what is wrong. */
gboolean sf_qmp_message_parse(JsonObject *object, SfQmpMessage *message, GError **error);
void sf_qmp_message_clear(SfQmpMessage *message);

/* ---- a connection ---- */

typedef struct SfQmp SfQmp;

typedef struct {
    void (*event)(const char *name, JsonObject *data_or_null, gpointer owner);
    void (*closed)(const GError *reason, gpointer owner); /* once; all commands have been failed before */
} SfQmpHandlers;

/* The end of one command: a result (only valid in the call), or an error. */
typedef void (*SfQmpReply)(JsonNode *result, const GError *error, gpointer data);

/* Takes fd, a connected unix stream socket, and begins negotiating. handlers and owner must outlive it. */
SfQmp *sf_qmp_new(int fd, const SfQmpHandlers *handlers, gpointer owner);

/* No handler is called any more, but commands that wait are failed with SF_VM_ERROR_GONE. */
void sf_qmp_free(SfQmp *qmp);

/* Reads what has come already, so that events that QEMU left behind at its end are told. */
void sf_qmp_drain(SfQmp *qmp);

/*
 * One command. Takes args (NULL: none) and fd (-1: none; sent beside the command, then closed). reply may be NULL; it
 * is called from the main loop or, when the connection is lost, from sf_qmp_free(). Many commands can be under way.
 */
void sf_qmp_execute(SfQmp *qmp, const char *command, JsonObject *args, int fd, SfQmpReply reply, gpointer data);

/* ---- several commands, one end ---- */

typedef struct SfQmpBatch SfQmpBatch;

/* What is added is sent at once; sf_qmp_batch_run() ends the adding and frees the batch when all answers are there. */
SfQmpBatch *sf_qmp_batch_new(SfQmp *qmp);
void sf_qmp_batch_add(SfQmpBatch *batch, const char *command, JsonObject *args, int fd);

/* done gets NULL, or the error of the first command that failed (those behind it have been tried all the same). */
typedef void (*SfQmpBatchDone)(const GError *error, gpointer data);
void sf_qmp_batch_run(SfQmpBatch *batch, SfQmpBatchDone done, gpointer data);

#endif
