# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# The guest image, in two layers, without root and without loop mounts:
#
#   base   mmdebstrap: Debian packages of image.packages + guest-files/ -> base.ext4, vmlinuz, initrd.img, packages
#          image/FLAVOUR-KEY/            made when the package list or guest-files change; 1 minute
#   guest  the project's guest side as `meson install` puts it, written into a copy of base.ext4 with debugfs
#          image/FLAVOUR-KEY-GUESTKEY/   made when a guest binary changes; seconds
#
# The second is what a VM boots: rootfs.qcow2, vmlinuz, initrd.img, cmdline; build-guest/image-FLAVOUR leads to it.
# The release is the host's, so that guest binaries built here run there.

image_size=2G
image_cmdline="root=/dev/vda rw console=ttyS0 rootflags=noatime net.ifnames=0 quiet"
image_layer_days=2        # an unused guest layer is removed after that

image_packages() {
    awk -v flavour="$1" '!/^#/ && ($1 == "any" || $1 == flavour || ($1 == "minimal" && flavour == "apps")) { print $2 }' \
        "$SF_ROOT/scripts/image.packages"
}

image_sources() {
    awk -v kind="$1-source" '!/^#/ && $1 == kind { print $2 }' "$SF_ROOT/scripts/image.packages"
}

# A flavour's own part of image-customize; some have none.
image_own_customize() {
    echo "$SF_ROOT/scripts/lib/image-customize-$1"
}

image_base_key() {
    {
        packages_release
        image_packages "$1"
        image_sources "$1"
        echo "$image_size $image_cmdline"
        cd "$SF_ROOT/scripts"
        find guest-files lib/image-customize ! -type d -printf '%p %m %l\n' | LC_ALL=C sort
        find guest-files lib/image-customize -type f | LC_ALL=C sort | xargs cat
        [ ! -e "$(image_own_customize "$1")" ] || cat "$(image_own_customize "$1")"
    } | cache_key
}

image_base_dir() {
    echo "$SF_CACHE/image/$1-$(image_base_key "$1")"
}

# Where the finished image of a flavour is; image_guest makes it.
image_dir() {
    realpath "$(build_dir guest)/image-$1"
}

# Step: the base layer of a flavour.
image_base() {
    local flavour=$1 dir key uuid new mirror signed sources own=()
    cache_lock image
    dir=$(image_base_dir "$flavour")
    if cache_is_complete "$dir"; then
        note "cached"
        return
    fi
    key=$(image_base_key "$flavour")
    uuid=$(sed -E 's/^(.{8})(.{4})(.{4}).*/\1-\2-\3-8000-000000000000/' <<< "$key")
    new=$dir.new
    rm -rf "$dir" "$new"
    mkdir -p "$new"
    mirror=$(packages_mirror)
    sources=$(image_sources "$flavour" | paste -sd' ')
    signed="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    [ ! -e "$(image_own_customize "$flavour")" ] || own=(
        --customize-hook="copy-in '$(image_own_customize "$flavour")' /tmp"
        --customize-hook="sh \"\$1/tmp/image-customize-$flavour\" \"\$1\"; rm \"\$1/tmp/image-customize-$flavour\"")
    # Hooks may run as the root of a user namespace, which cannot look into a home of mode 0700: what they need goes in,
    # and what they made comes out, by mmdebstrap's own copies.
    mmdebstrap --mode=auto --variant=minbase --architectures=amd64 \
        --include="$(image_packages "$flavour" | paste -sd,)" \
        --aptopt='Acquire::Retries "3"' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "${own[@]}" \
        --customize-hook="copy-in '$SF_ROOT/scripts/guest-files' '$SF_ROOT/scripts/lib/image-customize' /tmp" \
        --customize-hook="sh \"\$1/tmp/image-customize\" \"\$1\" \"\$1/tmp/guest-files\" $image_size $uuid $sources" \
        --customize-hook="download /image/base.ext4.zst '$new/base.ext4.zst'" \
        --customize-hook="download /image/vmlinuz '$new/vmlinuz'" \
        --customize-hook="download /image/initrd.img '$new/initrd.img'" \
        --customize-hook="download /image/packages '$new/packages'" \
        "$(packages_release)" /dev/null \
        "deb $signed $mirror $(packages_release) main" \
        ${sources:+"deb-src $signed $mirror $(packages_release) main"}
    zstd -q -d --sparse --rm "$new/base.ext4.zst"
    e2fsck -fn "$new/base.ext4"
    echo "$image_cmdline" > "$new/cmdline"
    # QEMU runs as another user than the daemon.
    chmod 644 "$new"/*
    mv "$new" "$dir"
    cache_set_complete "$dir"
    note "made: $(wc -l < "$dir/packages") packages"
}

# debugfs commands that put the tree below $1 into a file system; existing files are replaced.
image_debugfs_commands() {
    local path kind mode target
    cd "$1"
    find . -mindepth 1 -printf '%P\t%y\t%m\t%l\n' | LC_ALL=C sort | while IFS=$'\t' read -r path kind mode target; do
        case $kind in
        d) printf 'mkdir "/%s"\n' "$path" ;;
        l) printf 'rm "/%s"\nsymlink "/%s" "%s"\n' "$path" "$path" "$target" ;;
        f) printf 'rm "/%s"\nwrite "%s" "/%s"\nsif "/%s" mode 0100%s\nsif "/%s" uid 0\nsif "/%s" gid 0\n' \
            "$path" "$1/$path" "$path" "$path" "$mode" "$path" "$path" ;;
        esac
    done
}

# image_check_files EXT4 TREE: debugfs reports no failure by its exit code, so read everything back.
image_check_files() {
    local path
    (cd "$2" && find . -type f -printf '%P\n') | while read -r path; do
        debugfs -R "cat \"/$path\"" "$1" 2> /dev/null | cmp -s - "$2/$path" ||
            { echo "$1: /$path was not written (file system full?)"; return 1; }
    done
}

# Step: the guest layer: build what runs in the guest, and put it into a copy of the base.
image_guest() {
    local flavour=$1 base build tree dir new
    cache_lock image
    base=$(image_base_dir "$flavour")
    build=$(build_dir guest)
    build_make "$build" all -Dhost=false -Dtests=false -Dman=false --prefix=/usr --sysconfdir=/etc \
        --libdir=lib/x86_64-linux-gnu
    tree=$build/tree
    rm -rf "$tree"
    DESTDIR=$tree meson install -C "$build" --no-rebuild --strip
    dir=$base-$(cd "$tree" && {
        find . -printf '%P %y %m %l\n' | LC_ALL=C sort
        find . -type f | LC_ALL=C sort | xargs -r sha256sum
    } | cache_key)
    if cache_is_complete "$dir"; then
        ln -sfn "$dir" "$build/image-$flavour"
        note "cached"
        return
    fi
    new=$dir.new
    rm -rf "$dir" "$new"
    mkdir -p "$new"
    cp --sparse=always "$base/base.ext4" "$new/rootfs.ext4"
    image_debugfs_commands "$tree" > "$new/commands"
    debugfs -w -f "$new/commands" "$new/rootfs.ext4" > "$new/debugfs.log" 2>&1
    image_check_files "$new/rootfs.ext4" "$tree"
    e2fsck -fn "$new/rootfs.ext4"
    "$(qemu_prefix)/bin/qemu-img" convert -f raw -O qcow2 "$new/rootfs.ext4" "$new/rootfs.qcow2"
    rm "$new/rootfs.ext4" "$new/commands"
    cp "$base"/{vmlinuz,initrd.img,cmdline,packages} "$new/"
    chmod 644 "$new"/*
    mv "$new" "$dir"
    cache_set_complete "$dir"
    ln -sfn "$dir" "$build/image-$flavour"
    find "$(dirname "$base")" -maxdepth 2 -path "$base-*/complete" -mtime "+$image_layer_days" -printf '%h\n' |
        xargs -r rm -rf
    note "made: $dir"
}

image_plan() {
    plan_add "Guest image: Debian packages" "check that apt reaches its mirror and that the disk has 4 GiB free; as a \
user, that /etc/subuid has a range for you (mmdebstrap's unshare mode)" image_base "$1"
    plan_add "Guest image: agent and library" "read the log" image_guest "$1"
}
