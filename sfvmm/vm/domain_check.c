/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a domain lacks to be forkable, and mending it: the answer of domain.check.
 *
 *     looked at   the running domain, or, when it does not run, its definition
 *     mended      its definition; a domain that runs has it after its next start
 *
 * All in a worker thread.
 */
#include "sfvmm/vm/launcher_private.h"

#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/libvirt.h"

typedef struct {
    SfLibvirt *libvirt;
    char *qemu;
    char *name;
    gboolean fix;
    JsonObject *network; /* that it is to be in, or NULL */
} Check;

static void check_free(gpointer data)
{
    Check *check = data;

    g_clear_pointer(&check->network, json_object_unref);
    g_free(check->qemu);
    g_free(check->name);
    g_free(check);
}

static JsonArray *lacks_to_json(const GPtrArray *lacks)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < lacks->len; i++) {
        const SfDomainLack *lack = g_ptr_array_index(lacks, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "what", lack->what);
        json_object_set_string_member(object, "xml", lack->xml ? lack->xml : "");
        json_object_set_boolean_member(object, "needed", lack->needed);
        json_array_add_object_element(array, object);
    }
    return array;
}

/* What can be mended of the definition is. */
static gboolean mend(const Check *check, virDomainPtr domain, GError **error)
{
    char *text;
    g_autofree char *fixed = NULL;
    virDomainPtr defined;

    if (virDomainIsPersistent(domain) != 1) {
        g_set_error(
            error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
            "it is transient, so it has no definition that could be changed: change the XML that it is created from");
        return FALSE;
    }
    text = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
    if (!text) {
        return sf_libvirt_fail(error, "its XML");
    }
    fixed = sf_domain_xml_fix(text, check->qemu, check->network, error);
    free(text);
    if (!fixed) {
        return FALSE;
    }
    defined = virDomainDefineXML(virDomainGetConnect(domain), fixed);
    if (!defined) {
        return sf_libvirt_fail(error, "libvirt does not take the changed definition");
    }
    virDomainFree(defined);
    return TRUE;
}

static JsonObject *look(const Check *check, virDomainPtr domain, GError **error)
{
    gboolean active = virDomainIsActive(domain) == 1;
    char *text = virDomainGetXMLDesc(domain, 0);
    g_autoptr(SfDomainXml) xml = text ? sf_domain_xml_parse_in(text, check->network, error) : NULL;
    g_autoptr(GPtrArray) lacks = NULL;
    JsonObject *object;

    if (!text) {
        (void)!sf_libvirt_fail(error, "its XML");
        return NULL;
    }
    free(text);
    if (!xml) {
        return NULL;
    }
    lacks = sf_domain_xml_lacks(xml, check->qemu);
    if (check->fix && lacks->len > 0 && !mend(check, domain, error)) {
        return NULL;
    }
    object = json_object_new();
    json_object_set_string_member(object, "domain", xml->name);
    json_object_set_boolean_member(object, "running", active);
    json_object_set_boolean_member(object, "forkable", sf_domain_lacks_forkable(lacks));
    json_object_set_array_member(object, "lacks", lacks_to_json(lacks));
    json_object_set_boolean_member(object, "fixed", check->fix && lacks->len > 0);
    return object;
}

static void check_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    const Check *check = data;
    GError *error = NULL;
    virConnectPtr connection = sf_libvirt_connect(check->libvirt, SF_LIBVIRT_SLOW, &error);
    virDomainPtr domain = connection ? virDomainLookupByName(connection, check->name) : NULL;
    JsonObject *object = domain ? look(check, domain, &error) : NULL;

    if (connection && !domain) {
        (void)!sf_libvirt_fail(&error, "it is not there");
    }
    if (domain) {
        virDomainFree(domain);
    }
    if (connection) {
        virConnectClose(connection);
    }
    if (object) {
        g_task_return_pointer(task, object, (GDestroyNotify)json_object_unref);
    } else {
        g_prefix_error(&error, "domain %s of %s: ", check->name, sf_libvirt_uri(check->libvirt));
        g_task_return_error(task, error);
    }
}

void sf_launcher_libvirt_check(SfLauncher *launcher, const char *uri, const char *domain, JsonObject *network_or_null,
                               gboolean fix, GTask *task)
{
    Check *check = g_new0(Check, 1);

    check->libvirt = sf_libvirt_get(uri);
    check->qemu = g_strdup(launcher->options.qemu);
    check->name = g_strdup(domain);
    check->network = network_or_null ? json_object_ref(network_or_null) : NULL;
    check->fix = fix;
    g_task_set_task_data(task, check, check_free);
    g_task_run_in_thread(task, check_thread);
    g_object_unref(task);
}
