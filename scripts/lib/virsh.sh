# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# A virsh with the commands sf-*: Debian's source of the libvirt that is installed here, plus sfvmm/virsh. Only virsh is
# built: it is linked with the installed library, which has all that virsh asks for, as it is of the same version. The
# key: that version and our files.
#
#   virsh/KEY/{virsh,complete}

virsh_options=(-Dauto_features=disabled -Dreadline=enabled)

# "9.0.0-4+deb12u2": of the source package.
virsh_version() {
    dpkg-query -W -f '${source:Version}' libvirt0 2>/dev/null
}

virsh_files() {
    printf '%s\n' "$SF_ROOT"/sfvmm/virsh/{snowflock.patch,virsh-snowflock.c,virsh-snowflock.h}
}

virsh_dir() {
    local key
    key=$({ virsh_version; printf '%s\n' "${virsh_options[@]}"; virsh_files | xargs cat; } | cache_key)
    echo "$SF_CACHE/virsh/$key"
}

# virsh_fetch FOLDER: the source as FOLDER/src.
virsh_fetch() {
    local private=$1/apt
    mkdir -p "$private/lists/partial" "$private/cache/archives/partial"
    { packages_source_suites | sed 's/^/deb-src /'; } > "$private/source.list"
    local apt=(apt-get -o Acquire::Retries=3 -o Dir::Etc::sourcelist="$private/source.list" -o Dir::Etc::sourceparts=-
        -o Dir::State::lists="$private/lists" -o Dir::Cache="$private/cache")
    [ "$(id -u)" != 0 ] || apt+=(-o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$1" && "${apt[@]}" source "libvirt=$(virsh_version)" && mv libvirt-*/ src)
}

# Step.
virsh_build() {
    local dir work
    dir=$(virsh_dir)
    cache_is_complete "$dir" && { note "cached in $dir"; return; }
    [ -n "$(virsh_version)" ] || { echo "no libvirt is installed (package libvirt0)"; return 1; }
    cache_lock virsh
    cache_is_complete "$dir" && { note "cached in $dir"; return; }
    work=$dir/work
    rm -rf "$dir"
    mkdir -p "$work"
    virsh_fetch "$work"
    patch -d "$work/src" -p1 --no-backup-if-mismatch --fuzz=0 -i "$SF_ROOT/sfvmm/virsh/snowflock.patch"
    cp "$SF_ROOT"/sfvmm/virsh/virsh-snowflock.[ch] "$work/src/tools/"
    (
        export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=$work
        CC="ccache gcc" meson setup "${virsh_options[@]}" "$work/build" "$work/src"
        ninja -C "$work/build" tools/virsh
    )
    cp "$work/build/tools/virsh" "$dir/virsh"
    rm -rf "$work"
    cache_set_complete "$dir"
    note "virsh $(virsh_version)"
}

# Step: no failure, when it can't be built (a mirror may have a newer source than what is installed).
virsh_try() {
    # In a shell of its own: set -e does not work in what a condition calls.
    bash -c '. "$1/scripts/lib/common.sh" && virsh_build' virsh_try "$SF_ROOT" || note "not built: the log says why"
}

virsh_plan() {
    plan_add "virsh with the commands sf-*" "go without: sf-virsh has the same commands (docs/libvirt.md)" "$1"
}
