#!/bin/sh
# Makes .venv ready, from a clone on a fresh Debian with no more than python3, make and git.
#
#   ./setup.sh run     what the system itself needs: .venv/bin/atoll
#   ./setup.sh dev     also what tests, checks and benchmarks need
#
# What is there already is left alone: a stamp in .venv names the state it was made for, and a second
# run ends at once without the network. What only the host's package manager can bring is installed
# when root runs this on a Debian; anybody else is told the command.
set -eu

cd "$(dirname "$0")"
level=${1:-run}

say() { printf 'setup: %s\n' "$*"; }

# --- what the host must bring -------------------------------------------------------------------

missing=""
need() {  # need PACKAGE COMMAND...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The distribution's own interpreter goes first: its headers and venv module come as packages.
choose_python() {
    for candidate in ${PYTHON:-} /usr/bin/python3 python3; do
        if recent "$candidate"; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    say "no Python 3.11 or newer; set PYTHON to one" >&2
    return 1
}

has_headers() {
    "$python" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")'
}

# Looks the same as root and as anybody else: administration programs are in sbin.
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }

list_missing() {
    missing=""
    if [ ! -x .venv/bin/atoll ]; then  # all that only the making of the environment needs
        need python3-venv "$python" -c 'import ensurepip, venv'
        need gcc has gcc
        need libc6-dev test -e /usr/include/stdlib.h
        need python3-dev has_headers
        need pkg-config has pkg-config
        need libfuse3-dev pkg-config --exists fuse3
        need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
    fi
    need fuse3 has fusermount3
    need iproute2 has ip
    need iputils-ping has ping
    need procps has ps
    need util-linux has setpriv
    [ "$level" = dev ] || return 0
    need git has git
    need curl has curl
    need rsync has rsync
    need sqlite3 has sqlite3
}

install_missing() {
    list_missing
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "this host lacks:$missing"
        say "as root on Debian: apt-get install --no-install-recommends$missing"
        exit 1
    fi
    say "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Lists may be absent, or name packages that are gone: fetch them, but only now. If a source that
    # does not matter here fails, the installation below still knows best.
    apt-get -qq update || say "some package lists could not be fetched; going on with the others"
    # shellcheck disable=SC2086  # a list of words is meant
    apt-get -qq -y install --no-install-recommends $missing >/dev/null
    list_missing
    if [ -n "$missing" ]; then
        say "still lacking after installation:$missing"
        exit 1
    fi
}

# A Debian that was never booted (debootstrap, some containers) lacks the link that systemd makes at
# boot, and fusermount3 cannot unmount for an ordinary user without it. It is made when root runs
# this; for anybody else `atoll` names it and the remedy.
make_mtab() {
    if [ "$(id -u)" = 0 ] && [ ! -e /etc/mtab ] && [ ! -L /etc/mtab ] && [ -e /proc/self/mounts ]; then
        ln -s ../proc/self/mounts /etc/mtab && say "made /etc/mtab, which fusermount3 reads"
    fi
    return 0
}

# --- the Python environment ---------------------------------------------------------------------

# The stamp changes with what the project requires (settings of tools do not count), this script, the
# interpreter's version, and the place of the tree, because the environment's scripts name it.
requirements() { sed '/^\[tool\./,$d' pyproject.toml; }
state() { { pwd -P; .venv/bin/python -V; requirements; cat setup.sh; } | cksum | tr -d ' \n'; }

# True if .venv was made for this state, at this level or a higher one.
ready() {
    [ -x .venv/bin/atoll ] && [ -f .venv/setup-stamp ] || return 1
    read -r made_level made_state <.venv/setup-stamp || return 1
    [ "$made_state" = "$(state)" ] && { [ "$made_level" = "$level" ] || [ "$made_level" = dev ]; }
}

# False for an environment whose making was cut short, whose interpreter is gone, or that was moved.
usable() {
    recent .venv/bin/python &&
        head -n 3 .venv/bin/pip 2>/dev/null | grep -qF "$(pwd -P)/.venv/bin/python" &&
        .venv/bin/python -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null
}

make_environment() {
    if ! usable; then
        say "making .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    # Dependency groups came with pip 25.1.
    .venv/bin/python -m pip --quiet install --upgrade 'pip>=25.1'
    say "installing Python packages into .venv ($level); the first time takes about a minute"
    if [ "$level" = dev ]; then
        .venv/bin/python -m pip --quiet install --editable . --group dev
    else
        .venv/bin/python -m pip --quiet install --editable .
    fi
    printf '%s %s\n' "$level" "$(state)" >.venv/setup-stamp
}

case $level in
    run | dev) ;;
    *) say "say run or dev, not '$level'"; exit 2 ;;
esac
python=$(choose_python)
install_missing
make_mtab
ready || make_environment
