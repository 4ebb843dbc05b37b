/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDomain: one libvirt domain as SfVm's keeper (vm_private.h): its monitor as a socket that speaks QMP, its end, its
 * title and lineage. Main thread, but for the calls that say otherwise.
 */
#ifndef SF_DOMAIN_H
#define SF_DOMAIN_H

#include <json-glib/json-glib.h>
#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/libvirt.h"
#include "sfvmm/vm/vm_private.h"

typedef struct SfDomain SfDomain;

/* A domain that exists or is about to. ours: we have made it, and may say what it is. */
SfDomain *sf_domain_new(SfLibvirt *libvirt, const char *name, const char *uuid, gboolean ours);
SfDomain *sf_domain_from_json(JsonObject *object, GError **error);
SfDomain *sf_domain_ref(SfDomain *domain);
void sf_domain_unref(SfDomain *domain);
const char *sf_domain_name(const SfDomain *domain);
const char *sf_domain_uuid(const SfDomain *domain);
SfLibvirt *sf_domain_libvirt(const SfDomain *domain);

/*
 * From now on the domain, which may be about to be made, is known to be somebody's: a sweep spares it. The end of its
 * VM unwatches it; without a VM, whoever has begun it does.
 */
void sf_domain_watch(SfDomain *domain);
void sf_domain_unwatch(SfDomain *domain);

/* Makes the domain a VM's keeper. The VM has a reference; libvirt's events of the domain reach it from now on. */
void sf_domain_keep(SfDomain *domain, SfVm *vm);

/* Ends the domain, in the background; nothing is told. */
void sf_domain_destroy(SfDomain *domain);

/* The monitor command of a worker thread: its "return", or an error. Takes args. Blocks. */
JsonNode *sf_domain_command(virDomainPtr domain, const char *command, JsonObject *args_or_null, GError **error);

#endif
