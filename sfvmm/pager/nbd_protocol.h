/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Constants of the NBD protocol, as far as the page server speaks it: fixed newstyle negotiation, structured replies.
 * The protocol is the NBD project's doc/proto.md; all integers travel big-endian.
 *
 *     server: magic 8, IHAVEOPT 8, flags 2            client: flags 4
 *     option:       | IHAVEOPT 8 | option 4 | length 4 | data |
 *     option reply: | magic 8 | option 4 | type 4 | length 4 | data |
 *     request:      | magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 4 |
 *     simple reply: | magic 4 | error 4 | cookie 8 | data |
 *     chunk:        | magic 4 | flags 2 | type 2 | cookie 8 | length 4 | data |
 */
#ifndef SF_NBD_PROTOCOL_H
#define SF_NBD_PROTOCOL_H

#define NBD_MAGIC              UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC      UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC        UINT32_C(0x668e33ef)

#define NBD_GREETING_LENGTH      18
#define NBD_CLIENT_FLAGS_LENGTH  4
#define NBD_OPTION_HEADER_LENGTH 16
#define NBD_OPTION_REPLY_LENGTH  20
#define NBD_REQUEST_LENGTH       28
#define NBD_SIMPLE_REPLY_LENGTH  16
#define NBD_CHUNK_LENGTH         20
#define NBD_EXPORT_NAME_ZEROES   124 /* after the reply to NBD_OPT_EXPORT_NAME, unless both said NO_ZEROES */
#define NBD_NAME_MAX             4096

/* Handshake flags, of the server and of the client alike. */
#define NBD_FLAG_FIXED_NEWSTYLE 0x1
#define NBD_FLAG_NO_ZEROES      0x2

#define NBD_OPT_EXPORT_NAME       1
#define NBD_OPT_ABORT             2
#define NBD_OPT_LIST              3
#define NBD_OPT_STARTTLS          5
#define NBD_OPT_INFO              6
#define NBD_OPT_GO                7
#define NBD_OPT_STRUCTURED_REPLY  8
#define NBD_OPT_LIST_META_CONTEXT 9
#define NBD_OPT_SET_META_CONTEXT  10

#define NBD_REP_ACK          1
#define NBD_REP_SERVER       2
#define NBD_REP_INFO         3
#define NBD_REP_META_CONTEXT 4
#define NBD_REP_ERR_UNSUP    UINT32_C(0x80000001)
#define NBD_REP_ERR_POLICY   UINT32_C(0x80000002)
#define NBD_REP_ERR_INVALID  UINT32_C(0x80000003)
#define NBD_REP_ERR_TLS_REQD UINT32_C(0x80000005)
#define NBD_REP_ERR_UNKNOWN  UINT32_C(0x80000006)
#define NBD_REP_ERR_SHUTDOWN UINT32_C(0x80000007)
#define NBD_REP_ERR_TOO_BIG  UINT32_C(0x80000009)

#define NBD_INFO_EXPORT      0
#define NBD_INFO_NAME        1
#define NBD_INFO_DESCRIPTION 2
#define NBD_INFO_BLOCK_SIZE  3

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS      0x0001
#define NBD_FLAG_READ_ONLY      0x0002
#define NBD_FLAG_SEND_DF        0x0080
#define NBD_FLAG_CAN_MULTI_CONN 0x0100
#define NBD_FLAG_SEND_CACHE     0x0400

#define NBD_CMD_READ         0
#define NBD_CMD_WRITE        1
#define NBD_CMD_DISC         2
#define NBD_CMD_FLUSH        3
#define NBD_CMD_TRIM         4
#define NBD_CMD_CACHE        5
#define NBD_CMD_WRITE_ZEROES 6
#define NBD_CMD_BLOCK_STATUS 7
#define NBD_CMD_RESIZE       8

#define NBD_CMD_FLAG_FUA     0x01
#define NBD_CMD_FLAG_DF      0x04
#define NBD_CMD_FLAG_REQ_ONE 0x08

#define NBD_CHUNK_FLAG_DONE    0x1
#define NBD_CHUNK_NONE         0
#define NBD_CHUNK_OFFSET_DATA  1
#define NBD_CHUNK_OFFSET_HOLE  2
#define NBD_CHUNK_BLOCK_STATUS 5
#define NBD_CHUNK_ERROR        0x8001
#define NBD_CHUNK_ERROR_OFFSET 0x8002

/* Extents of the context base:allocation. */
#define NBD_STATE_HOLE 0x1
#define NBD_STATE_ZERO 0x2

/* Errors as they travel. */
#define NBD_EPERM     1
#define NBD_EIO       5
#define NBD_ENOMEM    12
#define NBD_EINVAL    22
#define NBD_EOVERFLOW 75
#define NBD_ENOTSUP   95
#define NBD_ESHUTDOWN 108

#endif
