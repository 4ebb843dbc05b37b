/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain's XML: read, mended, made a shell's, made portable, taken from a peer. */
#include <stddef.h>
#include <stdint.h>

#include "sfvmm/vm/domain_portable.h"
#include "sfvmm/vm/domain_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const SfDomainLineage lineage = { .role = "shell", .owner = "/run", .vm = "vm" };
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(SfDomainXml) domain = sf_domain_xml_parse(text, NULL);
    guint32 address = domain ? domain->address : 0;
    g_autofree char *owner = sf_domain_lineage_owner(text);
    g_autofree char *fixed = sf_domain_xml_fix(text, "/qemu", NULL, NULL);
    g_autofree char *portable = sf_domain_portable(text, address, NULL);

    (void)sf_domain_portable_check(text, address, 0, 0, 0, "tcg", NULL);
    if (portable) { /* the form is its own form */
        g_autofree char *again = sf_domain_portable(portable, address, NULL);
        g_assert_cmpstr(portable, ==, again);
    }
    if (domain) {
        g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(domain, "/qemu");
        g_autoptr(GPtrArray) overlays = g_ptr_array_new();
        g_autofree char *shell = NULL;
        for (guint i = 0; i < domain->disks->len; i++) {
            if (!((SfDomainDisk *)g_ptr_array_index(domain->disks, i))->readonly) {
                g_ptr_array_add(overlays, (char *)"/overlay");
            }
        }
        shell = sf_domain_xml_shell(
            &(SfDomainShell){ text, "sf-vm-1", domain->uuid, &lineage, "/qemu", overlays, address }, NULL);
    }
    return 0;
}
