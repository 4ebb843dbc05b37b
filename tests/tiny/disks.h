/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads from disks, by DMA straight to where it is asked for. */
#ifndef TINY_DISKS_H
#define TINY_DISKS_H

#include <stdint.h>

/* The first bytes (at most MIB, whole sectors) of the last disk of a kind to an address. 0: no such disk, or an error. */
int disk_read_virtio_blk(uint32_t address, uint32_t bytes);
int disk_read_virtio_scsi(uint32_t address, uint32_t bytes);
int disk_read_ahci(uint32_t address, uint32_t bytes);   /* port 0 */

#endif
