# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What every script sources first: where things are, and the other modules.
#   SF_ROOT   the checkout
#   SF_CACHE  everything downloaded or built outside the checkout. Root's default is /var/cache/snowflock and not in
#             /root, because QEMU runs as another user and must reach its own binary and the image.
#   SF_LOGS   logs of the steps

set -euo pipefail
umask 022

SF_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -z "${SF_CACHE:-}" ]; then
    if [ "$(id -u)" = 0 ]; then
        SF_CACHE=/var/cache/snowflock
    else
        SF_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/snowflock
    fi
fi
export SF_CACHE
SF_LOGS=$SF_CACHE/log
# meson uses ccache by itself; QEMU's build is told to.
export CCACHE_DIR=$SF_CACHE/ccache CCACHE_MAXSIZE=3G
# Debian's own tools come first: a Python or a meson of another kind in PATH does not see Debian's modules.
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export LC_ALL=C.UTF-8

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# The comment on top of a script, up to the first line that is none, is its help.
help_of_script() {
    sed -n '3,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"
}

for module in plan cache packages qemu build image virsh; do
    # shellcheck source=/dev/null
    . "$SF_ROOT/scripts/lib/$module.sh"
done
unset module

# Everything that a first fork needs.
setup_plan() {
    packages_plan
    qemu_plan
    build_plan
    plan_add "Configuration of sfvmmd, build/sfvmmd.conf" "read the log" build_daemon_config
    image_plan apps
}

# What tests, benches and examples find their programs by, once setup_plan has run (tests/README.md).
run_environment() {
    SF_BUILD=$(build_dir)
    SF_QEMU_PREFIX=$(qemu_prefix)
    SF_IMAGE=$(image_dir apps)
    SF_IMAGE_SYSTEMD=$(image_dir systemd) # if it has been made
    SF_FIRMWARE=$qemu_firmware
    SF_TEST_LOGS=$SF_BUILD/test-logs
    SF_VIRSH_PATCHED=$(virsh_dir)/virsh # if it has been built
    export SF_BUILD SF_QEMU_PREFIX SF_IMAGE SF_IMAGE_SYSTEMD SF_FIRMWARE SF_TEST_LOGS SF_VIRSH_PATCHED
}
