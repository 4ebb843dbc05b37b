/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both ends of our TLS connections have in common, but for the page channel's (sfvmm/pager/tls_session.c). */
#ifndef SF_TLS_H
#define SF_TLS_H

#define SF_TLS_PRIORITIES     "SECURE128:-VERS-ALL:+VERS-TLS1.3" /* for GnuTLS */
#define SF_TLS_OPERATORS_PORT 7412u                              /* control-listen= and tls://HOST, if they name none */

#endif
