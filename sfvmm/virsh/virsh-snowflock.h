/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command group "Snowflock" of virsh. */
#pragma once

#include "virsh.h"

extern const vshCmdDef snowflockCmds[];
