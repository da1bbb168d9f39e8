#!/bin/bash
# Makes this checkout ready to use: system packages, .venv with kvmgdb and its
# compiled extension, and the demo's guest.
#
# usage: scripts/setup.sh demo|test    what is needed to run, or also to test
#
# Every step finds out by itself that its work is done, so that a second run
# takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."
level=${1:?usage: scripts/setup.sh demo|test}

log=build/setup.log
stamp=.venv/.kvmgdb-$level
export LC_ALL=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Runs a command with its output in the log; a line of ours says what it is for.
step() {
    local title=$1
    shift
    printf 'setup: %s\n' "$title"
    printf '\n== %s: %s\n' "$title" "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 8 "$log" | sed 's/^/    /' >&2
        fail "that failed; all of its output is in $PWD/$log"
    fi
}

# ---- system packages --------------------------------------------------------

usable_python() {
    "$1" - <<'PYTHON' 2>/dev/null
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
PYTHON
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 /usr/bin/python3; do
        if [ -n "$candidate" ] && usable_python "$candidate"; then
            python=$candidate
            return
        fi
    done
    return 1
}

has_headers() {
    printf '#include <stdio.h>\n#include <linux/kvm.h>\n' | gcc -E -x c - >/dev/null 2>&1
}

# Fills `missing` (what a person would call it) and `packages` (Debian's name).
find_missing() {
    missing=() packages=()
    if ! find_python; then
        missing+=("python3 (3.11 or later, with venv, pip and headers)")
        packages+=(python3 python3-venv python3-dev)
    fi
    need gcc gcc
    has_headers || { missing+=("C headers"); packages+=(libc6-dev); }
    need make make
    need qemu-system-x86_64 qemu-system-x86
    need gdb gdb
    if [ "$level" = test ]; then
        need clang-format clang-format
        need lz4 lz4
        need pahole dwarves
        need tmux tmux
        need chromedriver chromium-driver
        command -v chromium >/dev/null ||
            need chromium-headless-shell chromium-headless-shell
    fi
}

need() {
    command -v "$1" >/dev/null || { missing+=("$1"); packages+=("$2"); }
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y -q --no-install-recommends
        -o DPkg::Lock::Timeout=300 "${packages[@]}")
    # Lists that are absent, or older than the mirror, fail at once: fetch new ones.
    "${install[@]}" || { apt-get update -q && "${install[@]}"; }
}

system_packages() {
    find_missing
    [ ${#packages[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        fail "these programs are missing, install them first:" "${missing[@]/#/    }"
    fi
    if [ "$(id -u)" != 0 ]; then
        local update=""
        compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || update="sudo apt-get update && "
        fail "system packages are missing; install them, then run this again:" \
            "    ${update}sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    step "installing ${packages[*]}" install_packages
    find_missing
    [ ${#missing[@]} -eq 0 ] ||
        fail "these are still missing after apt-get installed ${packages[*]}:" "${missing[@]/#/    }"
}

# ---- .venv ------------------------------------------------------------------

# What the virtual environment was made from: another place, another Python or
# other sources make it anew, or install into it again.
fingerprint() {
    {
        printf '%s\n' "$PWD"
        cat pyproject.toml setup.py scripts/web_libraries.py
        find native \( -name build -o -name .git \) -prune -o \
            -type f \( -name '*.[chS]' -o -name '*.py' -o -name '*.ld' -o -name Makefile \) \
            -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum
}

# A copied or moved environment runs the programs of the place it comes from.
healthy_venv() {
    grep -qF "$PWD/.venv/bin/python" .venv/bin/pip 2>/dev/null &&
        .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    rm -rf .venv &&
        "$python" -m venv .venv
}

build_requirements() {
    .venv/bin/python -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))'
}

install_project() {
    local extra=""
    [ "$level" = demo ] || extra="[test]"
    # Without build isolation a changed C file costs one compilation, not a
    # download of the build tools.
    build_requirements | .venv/bin/python -m pip install -r /dev/stdin &&
        .venv/bin/python -m pip install --no-build-isolation -e ".$extra"
}

virtual_environment() {
    local wanted
    wanted=$(fingerprint)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && healthy_venv; then
        return
    fi
    healthy_venv || step "making the virtual environment .venv" make_venv
    rm -f .venv/.kvmgdb-demo .venv/.kvmgdb-test
    step "compiling and installing kvmgdb into .venv" install_project
    printf '%s\n' "$wanted" >.venv/.kvmgdb-demo
    printf '%s\n' "$wanted" >"$stamp"
}

mkdir -p build
exec 9>build/setup.lock
flock 9 # one at a time in this checkout
: >"$log"
system_packages
virtual_environment
if [ "$level" = test ]; then
    step "fetching a viewer of profiles" \
        .venv/bin/python scripts/web_libraries.py speedscope build/speedscope
fi
.venv/bin/python -m kvmgdb.demo
