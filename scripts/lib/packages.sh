# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Debian packages that set-up needs, by purpose, and how they are installed: as root with apt; without root the exact
# command is printed. Debian 12's meson is too old for QEMU 10: there meson and pycotap come from -backports.

packages_build=(gcc libc6-dev make ninja-build meson ccache pkg-config git patch xz-utils libglib2.0-dev
    libjson-glib-dev libfdt-dev libgnutls28-dev libnbd-dev liblz4-dev libzstd-dev zlib1g-dev libnl-route-3-dev
    libnftables-dev libslirp-dev libvirt-dev libxml2-dev)
packages_qemu=(python3 python3-venv python3-pycotap flex bison libpixman-1-dev libslirp-dev
    liburing-dev libseccomp-dev libcap-ng-dev libzstd-dev libnuma-dev libgnutls28-dev)
packages_run=(seabios ipxe-qemu qemu-system-data debian-archive-keyring iproute2 util-linux)
packages_image=(mmdebstrap e2fsprogs uidmap zstd mount)
packages_test=(clang libclang-rt-dev mandoc g++ python3 bash-completion procps iproute2 util-linux
    bowtie2 bowtie2-examples nbdkit libnbd-bin python3-libnbd gnutls-bin nftables tshark
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients python3-libvirt munge slurm-client slurmctld slurmd
    build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools)
packages_virsh=(libxml2-utils xsltproc libreadline-dev rpcsvc-proto perl dpkg-dev)
packages_plot=(python3-matplotlib)

packages_backports=(meson python3-pycotap)
packages_meson_minimum=1.5

packages_release() {
    (. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
}

packages_check_release() {
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "only Debian on amd64 is supported"
    case $(packages_release) in
    bookworm | trixie) ;;
    *) die "Debian 12 (bookworm) or 13 (trixie) is needed; this is $(. /etc/os-release && echo "$PRETTY_NAME")" ;;
    esac
}

# URIs of the InRelease files that apt would fetch: known before the first `apt-get update`, and without root.
packages_releases() {
    apt-get --print-uris update | sed -n "s,^'\([^']*\)/dists/\([^']*\)/InRelease'.*,\1 \2,p"
}

# The mirror that this machine's apt uses for the release itself.
packages_mirror() {
    local uri
    uri=$(packages_releases | awk -v release="$(packages_release)" '$2 == release { print $1; exit }')
    [ -n "$uri" ] || die "apt knows no source of $(packages_release): check /etc/apt/sources.list.d"
    echo "$uri"
}

# Lines of apt's sources, without their type: this release, its updates and its security updates.
packages_source_suites() {
    local release
    release=$(packages_release)
    packages_releases | awk -v release="$release" '$2 == release || $2 == release "-updates" || $2 == release "-security" {
        print "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]", $1, $2, "main" }' | sort -u
}

packages_wanted() {
    printf '%s\n' "${packages_build[@]}" "${packages_qemu[@]}" "${packages_run[@]}" "${packages_image[@]}" \
        "${packages_test[@]}" "${packages_virsh[@]}" "${packages_plot[@]}" | sort -u
}

packages_meson_is_old() {
    local version
    version=$(dpkg-query -W -f '${Version}' meson 2>/dev/null) || return 0
    dpkg --compare-versions "$version" lt "$packages_meson_minimum"
}

# Names of the packages that are missing or too old, one a line.
packages_missing() {
    comm -23 <(packages_wanted) \
        <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' | awk '$2 == "installed" { print $1 }' | sort -u)
    if dpkg-query -W meson > /dev/null 2>&1 && packages_meson_is_old; then
        echo meson
    fi
}

# Of the packages named, those that come from backports here.
packages_from_backports() {
    [ "$(packages_release)" = bookworm ] || return 0
    printf '%s\n' "$@" | grep -Fx -f <(printf '%s\n' "${packages_backports[@]}") || true
}

packages_backports_known() {
    packages_releases | grep -q " $(packages_release)-backports\$"
}

packages_backports_source() {
    local mirror
    mirror=$(packages_mirror)
    cat << EOF
Types: deb
URIs: $mirror
Suites: $(packages_release)-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
}

# The commands that root has to run, for a person.
packages_say_commands() {
    local missing=("$@") backports
    mapfile -t backports < <(packages_from_backports "${missing[@]}")
    if ((${#backports[@]} > 0)) && ! packages_backports_known; then
        printf 'sudo tee /etc/apt/sources.list.d/snowflock-backports.sources << EOF\n%s\nEOF\n' \
            "$(packages_backports_source)"
    fi
    echo "sudo apt-get update"
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | grep -vFx -f <(printf '%s\n' "${backports[@]:-}") || true)
    ((${#missing[@]} == 0)) || echo "sudo apt-get install --no-install-recommends ${missing[*]}"
    ((${#backports[@]} == 0)) ||
        echo "sudo apt-get install --no-install-recommends -t $(packages_release)-backports ${backports[*]}"
}

# packages_apt_install ARGUMENT...: when it fails, what went wrong in the update comes last.
packages_apt_install() {
    apt-get -o Acquire::Retries=3 install -y --no-install-recommends "$@" && return
    grep -E '^(W|E): ' "$SF_LOGS/apt-update.log" | tail -n 10
    return 1
}

# Step: install what is missing.
packages_install() {
    local missing backports plain source
    mapfile -t missing < <(packages_missing)
    if ((${#missing[@]} == 0)); then
        note "all installed"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "${#missing[@]} packages are missing, and this is not root"
        packages_say_commands "${missing[@]}" > "$SF_DO"
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    mapfile -t backports < <(packages_from_backports "${missing[@]}")
    if ((${#backports[@]} > 0)) && ! packages_backports_known; then
        source=$(packages_backports_source)
        echo "$source" > /etc/apt/sources.list.d/snowflock-backports.sources
    fi
    # It succeeds when a mirror does not answer; what it said then is the reason why packages are not found below.
    apt-get -o Acquire::Retries=3 update 2>&1 | tee "$SF_LOGS/apt-update.log"
    mapfile -t plain < <(printf '%s\n' "${missing[@]}" | grep -vFx -f <(printf '%s\n' "${backports[@]:-}") || true)
    if ((${#plain[@]} > 0)); then
        packages_apt_install "${plain[@]}"
    fi
    if ((${#backports[@]} > 0)); then
        packages_apt_install -t "$(packages_release)-backports" "${backports[@]}"
    fi
    note "${#missing[@]} installed"
}

# packages_user NAME COMMENT: add a system user.
packages_user() {
    getent passwd "$1" > /dev/null ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
            --comment "$2" "$1"
}

# Step: the users that QEMU and sf-pager run as when sfvmmd is root (sfvmm/snowflock.sysusers says the same to systemd).
packages_users() {
    if getent passwd snowflock-qemu > /dev/null && getent passwd snowflock-pager > /dev/null; then
        note "there"
    elif [ "$(id -u)" = 0 ]; then
        packages_user snowflock-qemu "Snowflock's QEMU processes"
        packages_user snowflock-pager "Snowflock's sf-pager processes"
    else
        note "not needed without root: all runs as you"
    fi
}

packages_plan() {
    plan_add "Debian packages" "check that apt reaches its mirror: apt-get update" packages_install
    plan_add "Users snowflock-qemu, snowflock-pager" "read the log" packages_users
}
