# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Builds of the project itself, in the checkout (git ignores them):
# A compiler's new warning stops the tests, but nobody who only wants it to run.
#   build/        what runs: sfvmmd, sf-pager, sfctl, libsf, sf-agent
#   build-asan/   the same under ASan and UBSan, for the unit tests
#   build-tsan/   sf-pager and its tests under ThreadSanitizer
#   build-fuzz/   the fuzz targets, with clang
#   build-guest/  the guest side alone, for the image (image.sh)

build_dir() {
    echo "$SF_ROOT/build${1:+-$1}"
}

# build_make DIR TARGET OPTION...: configure once, or anew when the options have changed; then build.
build_make() {
    local dir=$1 target=$2
    shift 2
    if [ ! -e "$dir/build.ninja" ] || [ "$(cat "$dir/sf-options" 2>/dev/null)" != "$*" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$SF_ROOT" "$@"
        echo "$*" > "$dir/sf-options"
    fi
    ninja -C "$dir" "$target"
}

# Step.
build_project() {
    build_make "$(build_dir)" all
}

# Step: a configuration of sfvmmd that finds the patched QEMU of the cache.
build_daemon_config() {
    {
        printf '[sfvmmd]\nqemu=%s/bin/qemu-system-x86_64\nqemu-img=%s/bin/qemu-img\nfirmware=%s\n' \
            "$(qemu_prefix)" "$(qemu_prefix)" "$qemu_firmware"
        printf 'pager=%s/sfvmm/pager/sf-pager\nswitch=%s/sfvmm/net/sf-switch\n' "$(build_dir)" "$(build_dir)"
    } > "$(build_dir)/sfvmmd.conf"
}

# Step.
build_asan() {
    build_make "$(build_dir asan)" meson-test-prereq -Dwerror=true -Db_sanitize=address,undefined -Dbuildtype=debug \
        -Doptimization=1
}

# Step.
build_tsan() {
    build_make "$(build_dir tsan)" tsan-targets -Dwerror=true -Db_sanitize=thread -Dbuildtype=debug -Doptimization=1
}

# Step.
build_fuzz() {
    CC=clang build_make "$(build_dir fuzz)" fuzz-targets -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
        -Dbuildtype=debug -Doptimization=1
}

build_plan() {
    plan_add "Project build" "read the log" build_project
}
