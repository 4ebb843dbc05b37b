/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "disks.h"

#include "virtio.h"

#define SECTOR          512u
#define AREA_BLK        8               /* of QUEUES; the balloon's are before */
#define AREA_SCSI       12

/* --- virtio-blk --- */

static struct virtio blk = { .device = 0x1001, .area = AREA_BLK };

int disk_read_virtio_blk(uint32_t address, uint32_t bytes)
{
    struct {
        uint32_t type, zero;
        uint64_t sector;
        volatile uint8_t status;
    } *request = (void *)REQUESTS;
    struct virtio_buffer buffers[] = {
        { (uint32_t)request, 16, 0, 0 },
        { address, bytes, VIRTIO_WRITE, 0 },
        { (uint32_t)&request->status, 1, VIRTIO_WRITE, 0 },
    };

    request->type = request->zero = 0;
    request->sector = 0;
    request->status = 0xff;
    return virtio_start(&blk) && virtio_send(&blk, 0, buffers, 3) && request->status == 0;
}

/* --- virtio-scsi: LUN 0 of target 0 --- */

#define SCSI_QUEUE      2
#define SCSI_REQUEST    51
#define SCSI_RESPONSE   108
#define SCSI_STATUS     10              /* in the response; the byte behind says if there is one */
#define TEST_UNIT_READY 0x00
#define READ_10         0x28

static struct virtio scsi = { .device = 0x1004, .area = AREA_SCSI };

static int scsi_command(uint8_t operation, uint32_t address, uint32_t bytes)
{
    uint8_t *request = (uint8_t *)REQUESTS, *cdb = request + 19;
    volatile uint8_t *response = (volatile uint8_t *)REQUESTS + SECTOR;
    struct virtio_buffer buffers[] = {
        { (uint32_t)request, SCSI_REQUEST, 0, 0 },
        { (uint32_t)response, SCSI_RESPONSE, VIRTIO_WRITE, 0 },
        { address, bytes, VIRTIO_WRITE, 0 },
    };
    uint32_t i;

    for (i = 0; i < SECTOR; i++)
        request[i] = 0;
    request[0] = 1;
    request[2] = 0x40;
    cdb[0] = operation;
    cdb[7] = bytes / SECTOR >> 8;
    cdb[8] = bytes / SECTOR;
    response[SCSI_STATUS] = response[SCSI_STATUS + 1] = 0xff;
    return virtio_send(&scsi, SCSI_QUEUE, buffers, bytes ? 3 : 2) && !response[SCSI_STATUS] &&
           !response[SCSI_STATUS + 1];
}

int disk_read_virtio_scsi(uint32_t address, uint32_t bytes)
{
    int was_started = scsi.ports != 0;

    if (!virtio_start(&scsi))
        return 0;
    if (!was_started)
        scsi_command(TEST_UNIT_READY, 0, 0);    /* takes the news that it has been reset */
    return scsi_command(READ_10, address, bytes);
}

/* --- AHCI --- */

#define AHCI_CLASS      0x01060100u
#define AHCI_GHC        0x04
#define AHCI_PORT       0x100
#define AHCI_CLB        0x00            /* registers of a port */
#define AHCI_CLBU       0x04
#define AHCI_FB         0x08
#define AHCI_FBU        0x0c
#define AHCI_IS         0x10
#define AHCI_CMD        0x18
#define AHCI_TFD        0x20
#define AHCI_SERR       0x30
#define AHCI_CI         0x38
#define AHCI_CMD_START  0x01u
#define AHCI_CMD_FIS    0x10u
#define AHCI_CMD_RUNS   0xc000u
#define READ_DMA_EXT    0x25

int disk_read_ahci(uint32_t address, uint32_t bytes)
{
    int function = pci_find(8, 0xffffff00u, AHCI_CLASS);
    volatile uint32_t *hba, *port;
    uint32_t *list = (uint32_t *)REQUESTS, *table = list + PAGE / 4, *prd = table + 32;
    uint32_t i;

    if (function < 0)
        return 0;
    hba = (volatile uint32_t *)(pci_read(function, 0x24) & ~0xfu);
    port = hba + AHCI_PORT / 4;
    hba[AHCI_GHC / 4] |= 1u << 31;
    port[AHCI_CMD / 4] &= ~(AHCI_CMD_START | AHCI_CMD_FIS);
    while (port[AHCI_CMD / 4] & AHCI_CMD_RUNS)
        ;
    for (i = 0; i < 2 * PAGE / 4; i++)
        list[i] = 0;
    port[AHCI_CLB / 4] = (uint32_t)list;
    port[AHCI_FB / 4] = (uint32_t)list + 2048;
    port[AHCI_CLBU / 4] = port[AHCI_FBU / 4] = 0;
    port[AHCI_SERR / 4] = port[AHCI_IS / 4] = 0xffffffffu;

    list[0] = 5 | 1 << 16;              /* words of the command, entries of the table */
    list[2] = (uint32_t)table;
    table[0] = 0x27 | 0x80 << 8 | READ_DMA_EXT << 16;
    table[1] = 0x40u << 24;             /* LBA 0 */
    table[3] = bytes / SECTOR;
    prd[0] = address;
    prd[3] = bytes - 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    port[AHCI_CMD / 4] |= AHCI_CMD_FIS;
    port[AHCI_CMD / 4] |= AHCI_CMD_START;
    port[AHCI_CI / 4] = 1;
    while ((port[AHCI_CI / 4] & 1) && !(port[AHCI_TFD / 4] & 1))
        asm volatile("pause" ::: "memory");
    return !(port[AHCI_TFD / 4] & 0x89);        /* BSY, DRQ, ERR */
}
