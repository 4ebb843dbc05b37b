/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The launcher `libvirt` of a build without libvirt: says so. */
#include "sfvmm/vm/launcher_private.h"

#include "sfvmm/vm/domain_commit.h"
#include "sfvmm/vm/domain_portable.h"

static GError *missing(void)
{
    return g_error_new_literal(
        SF_VM_ERROR, SF_VM_ERROR_GONE,
        "this sfvmmd was built without libvirt: install libvirt-dev and libxml2-dev, and build it anew");
}

void sf_launcher_libvirt_shell(SfLauncher *launcher, const char *name, SfVmConfig *config, GTask *task)
{
    g_task_return_error(task, missing());
    g_object_unref(task);
}

void sf_launcher_libvirt_parent(SfLauncher *launcher, const char *name, const char *uri, const char *domain,
                                GTask *task)
{
    g_task_return_error(task, missing());
    g_object_unref(task);
}

void sf_launcher_libvirt_check(SfLauncher *launcher, const char *uri, const char *domain, JsonObject *network_or_null,
                               gboolean fix, GTask *task)
{
    g_task_return_error(task, missing());
    g_object_unref(task);
}

gboolean sf_launcher_libvirt_restore(SfLauncher *launcher, SfVm *vm, GError **error)
{
    g_propagate_error(error, missing());
    return FALSE;
}

void sf_launcher_libvirt_sweep(SfLauncher *launcher)
{
}

void sf_launcher_libvirt_look(SfLauncher *launcher, const char *uri, GTask *task)
{
    g_task_return_error(task, missing());
    g_object_unref(task);
}

char *sf_domain_portable(const char *template_text, guint32 address, GError **error)
{
    g_propagate_error(error, missing());
    return NULL;
}

gboolean sf_domain_portable_check(const char *text, guint32 address, guint64 memory, guint vcpus, guint disks,
                                  const char *accel, GError **error)
{
    g_propagate_error(error, missing());
    return FALSE;
}

gboolean sf_domain_commit(const char *qemu, const char *uri, const SfDiskChain *chain, gboolean *begun, GError **error)
{
    g_propagate_error(error, missing());
    return FALSE;
}
