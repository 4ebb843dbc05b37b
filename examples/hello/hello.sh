#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
eval "$(sf clone -n 4)" || exit
if [ "$SF_ID" -gt 0 ]; then
    echo "Hello from clone $SF_ID of $SF_COUNT" | exec sf exit 0 --result -
fi
sf join --quiet --results hello.d
cat hello.d/*
sf release
