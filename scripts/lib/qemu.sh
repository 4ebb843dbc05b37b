# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# The patched QEMU: source from Debian's source package (or a tarball the user gives), qemu-patches/ applied, built with
# ccache and installed in the cache under a key of all that goes into it.
#
#   source/current -> the tarball in use        qemu/KEY/bin, libexec, share    installed
#   ccache/                                     qemu/KEY/work/{src,build}       while it is being made
#
# QEMU is thus built once per tarball, series, options and release; a changed patch rebuilds what it touches.

qemu_release=trixie                      # the Debian release whose source package is taken, whatever this host is
qemu_version_series=10.0.                # any point release that apt verifies will do
qemu_pinned_version=10.0.13              # the one the series was measured with
qemu_pinned_sha256=6a0888e806c2ffc0c5f0733e974f9aea55491950d3c47c98669c8b236dde59ae

qemu_firmware=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu

qemu_options=(
    --python=/usr/bin/python3 --disable-download
    --target-list=x86_64-softmmu --without-default-features
    --enable-system --enable-tools --enable-kvm --enable-tcg --enable-slirp --enable-linux-io-uring
    --enable-fdt=system --enable-seccomp --enable-cap-ng --enable-pixman --enable-zstd --enable-numa --enable-gnutls
    --disable-docs --disable-install-blobs --disable-debug-info
    --firmwarepath=$qemu_firmware
)

qemu_source_dir() {
    echo "$SF_CACHE/source"
}

# Step: have source/current.
qemu_fetch() {
    local dir private tarball attempt mirror
    dir=$(qemu_source_dir)
    mkdir -p "$dir"
    cache_lock source
    if [ -n "${SF_QEMU_TARBALL:-}" ]; then
        qemu_take_tarball "$SF_QEMU_TARBALL"
        return
    fi
    if [ -e "$dir/current" ]; then
        note "cached: $(basename "$(readlink "$dir/current")")"
        return
    fi
    # A sources list, package lists and caches of our own: this machine's apt is not touched.
    private=$dir/apt
    mkdir -p "$private/lists/partial" "$private/cache/archives/partial" "$dir/download"
    mirror=$(packages_mirror)
    cat > "$private/source.sources" << EOF
Types: deb-src
URIs: $mirror
Suites: $qemu_release
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
    local apt=(apt-get -o Acquire::Retries=3 -o Dir::Etc::sourcelist="$private/source.sources"
        -o Dir::Etc::sourceparts=- -o Dir::State::lists="$private/lists" -o Dir::Cache="$private/cache")
    [ "$(id -u)" != 0 ] || apt+=(-o APT::Sandbox::User=root)
    for attempt in 1 2 3; do
        # What an interrupted update left in the lists makes the next one fail: begin anew.
        (("$attempt" == 1)) || { rm -rf "$private/lists"; mkdir -p "$private/lists/partial"; }
        if "${apt[@]}" update && (cd "$dir/download" && "${apt[@]}" source --download-only qemu); then
            break
        fi
        (("$attempt" < 3)) || return 1
    done
    tarball=$(find "$dir/download" -name 'qemu_*.orig.tar.xz' | sort -V | tail -n 1)
    [ -n "$tarball" ] || { echo "the source package of qemu in $qemu_release has no .orig.tar.xz"; return 1; }
    qemu_take_tarball "$tarball"
    rm -rf "$private"
}

# qemu_take_tarball FILE: make it the current one, when it is a QEMU of the right series.
qemu_take_tarball() {
    local dir file=$1 version sha
    dir=$(qemu_source_dir)
    [ -r "$file" ] || { echo "$file: cannot be read"; return 1; }
    version=$(tar -xOf "$file" --wildcards --no-wildcards-match-slash '*/VERSION') ||
        { echo "$file: no tarball of QEMU's source (it has no VERSION)"; return 1; }
    [[ $version == "$qemu_version_series"* ]] ||
        { echo "$file: QEMU $version; the patches are for ${qemu_version_series}x"; return 1; }
    sha=$(sha256sum "$file" | cut -d' ' -f1)
    if [ "$sha" != "$qemu_pinned_sha256" ]; then
        echo "QEMU $version is not the pinned $qemu_pinned_version (sha256 $sha)"
    fi
    file=$(realpath "$file")
    if [ "$(dirname "$file")" != "$dir/download" ]; then
        mkdir -p "$dir/download"
        cp "$file" "$dir/download/"
    fi
    echo "$sha" > "$dir/current.sha256"
    ln -sfn "download/$(basename "$file")" "$dir/current"
    note "QEMU $version"
}

qemu_patch_files() {
    find "$SF_ROOT/qemu-patches" -name '[0-9]*.patch' | LC_ALL=C sort
}

qemu_prefix() {
    local key
    key=$({
        cat "$(qemu_source_dir)/current.sha256"
        packages_release
        printf '%s\n' "${qemu_options[@]}"
        qemu_patch_files | xargs -r cat
    } | cache_key)
    echo "$SF_CACHE/qemu/$key"
}

# True when the QEMU of this series is in the cache. Asked before each lock: who needs nothing made does not wait for
# another checkout that makes the QEMU of another series.
qemu_is_ready() {
    [ -e "$(qemu_source_dir)/current.sha256" ] && cache_is_complete "$(qemu_prefix)"
}

qemu_stamp() {
    [ -e "$1/work/$2.done" ]
}

# Step: unpack and patch. The tree appears under its name only when it is whole.
qemu_unpack() {
    local prefix new patch
    qemu_is_ready && { note "cached"; return; }
    cache_lock qemu
    prefix=$(qemu_prefix)
    if cache_is_complete "$prefix" || qemu_stamp "$prefix" unpack; then
        note "cached"
        return
    fi
    new=$prefix/work/src
    rm -rf "$prefix"
    mkdir -p "$new"
    tar -xf "$(qemu_source_dir)/current" -C "$new" --strip-components=1
    while read -r patch; do
        echo "applying $(basename "$patch")"
        patch -d "$new" -p1 --no-backup-if-mismatch --fuzz=0 -i "$patch"
    done < <(qemu_patch_files)
    touch "$prefix/work/unpack.done"
}

# ccache hits whatever the key in the path: paths are seen relative to the work folder.
qemu_ccache() {
    export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=$1/work
}

# Step.
qemu_configure() {
    local prefix
    qemu_is_ready && { note "cached"; return; }
    cache_lock qemu
    prefix=$(qemu_prefix)
    if cache_is_complete "$prefix" || qemu_stamp "$prefix" configure; then
        note "cached"
        return
    fi
    qemu_ccache "$prefix"
    rm -rf "$prefix/work/build"
    mkdir -p "$prefix/work/build"
    cd "$prefix/work/build"
    CC="ccache gcc" ../src/configure --prefix="$prefix" "${qemu_options[@]}"
    touch "$prefix/work/configure.done"
}

# What is built and installed; QEMU's own tests and benches are a third of everything, and not needed.
qemu_targets() {
    comm -12 <(ninja -t targets all | sed 's/: [^:]*$//' | sort) \
        <(pyvenv/bin/meson introspect --installed . | /usr/bin/python3 -c '
import json, os, sys
for path in json.load(sys.stdin):
    print(os.path.relpath(path))' | sort)
}

# Step.
qemu_build() {
    local prefix targets
    qemu_is_ready && { note "cached"; return; }
    cache_lock qemu
    prefix=$(qemu_prefix)
    if cache_is_complete "$prefix"; then
        note "cached"
        return
    fi
    qemu_ccache "$prefix"
    cd "$prefix/work/build"
    mapfile -t targets < <(qemu_targets)
    ninja "${targets[@]}"
}

# Step.
qemu_install() {
    local prefix
    qemu_is_ready && { note "cached in $(qemu_prefix)"; return; }
    cache_lock qemu
    prefix=$(qemu_prefix)
    if cache_is_complete "$prefix"; then
        note "cached in $prefix"
        return
    fi
    DESTDIR='' "$prefix/work/build/pyvenv/bin/meson" install -C "$prefix/work/build" --no-rebuild
    "$prefix/bin/qemu-system-x86_64" --version
    rm -rf "$prefix/work"
    cache_set_complete "$prefix"
    note "installed in $prefix"
}

qemu_plan() {
    local again="read the log; when a package is missing, scripts/setup --what packages; then run this again"
    plan_add "QEMU source" \
        "check that apt reaches its mirror, or give a tarball of QEMU ${qemu_version_series}x: --qemu-tarball FILE" \
        qemu_fetch
    plan_add "QEMU unpack and patch" "a patch of qemu-patches/ does not fit this QEMU: see the log" qemu_unpack
    plan_add "QEMU configure" "$again" qemu_configure
    plan_add "QEMU build" "$again; it goes on where it stopped" qemu_build
    plan_add "QEMU install" "$again" qemu_install
}
