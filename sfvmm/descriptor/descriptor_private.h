/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of the tree's nodes and properties (docs/descriptor.md explains each), and checks. */
#ifndef SF_DESCRIPTOR_PRIVATE_H
#define SF_DESCRIPTOR_PRIVATE_H

#include "sfvmm/descriptor/descriptor.h"

#define SF_DT_COMPATIBLE    "snowflock,vm-descriptor"
#define SF_DT_ENCODING_NONE "none"
#define SF_DT_ENCODING_ZSTD "zstd"

/* FALSE + G_IO_ERROR_INVALID_DATA that says what is wrong with it. */
G_GNUC_PRINTF(2, 3) gboolean sf_descriptor_invalid(GError **error, const char *format, ...);

/* Are all values within the bounds of descriptor.h, texts printable UTF-8, page maps in order? Before encode, after
 * decode. */
gboolean sf_descriptor_check(const SfDescriptor *descriptor, GError **error);

#endif
