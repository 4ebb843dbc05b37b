# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# The cache: each item is a folder named by a hash of all that it was made from. An item is complete when it has the
# file `complete`; whoever uses it touches that file, and cache_clean removes what was not touched for long.

# Hash of standard input, short enough for a path and long enough not to collide.
cache_key() {
    sha256sum | cut -c1-16
}

cache_is_complete() {
    [ -e "$1/complete" ] && { touch "$1/complete" 2>/dev/null || true; }
}

cache_set_complete() {
    touch "$1/complete"
}

# cache_lock ITEM: one maker at a time; held until the calling step's process ends.
cache_lock() {
    mkdir -p "$SF_CACHE"
    exec {cache_lock_fd}> "$SF_CACHE/$1.lock"
    flock -n "$cache_lock_fd" && return
    echo "waiting for another run that makes $1"
    flock "$cache_lock_fd"
}

# Items that no checkout used for a month; half-made ones of the same age.
cache_clean() {
    local item days=30
    for item in "$SF_CACHE"/qemu/* "$SF_CACHE"/image/* "$SF_CACHE"/virsh/*; do
        [ -d "$item" ] || continue
        if [ -z "$(find "$item" -maxdepth 1 \( -name complete -o -path "$item" \) -mtime "-$days" -print -quit)" ]; then
            echo "removing $item"
            rm -rf "$item"
        fi
    done
}
