#!/usr/bin/env bash
# Installs the Debian packages named as arguments, those that are missing, with apt-get.
# Where that is not possible (no Debian, no root and no sudo), says what to install, and fails only if one is missing.
set -euo pipefail

# A tool that is there by other means than its package is there.
declare -A provides=(
    [cmake]=cmake [dash]=dash [file]=file [g++]=g++ [g++-aarch64-linux-gnu]=aarch64-linux-gnu-g++ [ninja-build]=ninja
    [openssh-server]=/usr/sbin/sshd [qemu-user-static]=qemu-aarch64-static [rsync]=rsync [shellcheck]=shellcheck
)

present() {
    local package=$1
    if [[ $package == python3-venv ]]; then
        "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null
    elif [[ -n ${provides[$package]:-} ]]; then
        command -v "${provides[$package]}" >/dev/null
    else
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed
    fi
}

missing=()
for package in "$@"; do
    present "$package" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

as_root=()
if ((EUID != 0)); then
    as_root=(sudo --non-interactive)
fi
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
    echo "error: these packages are missing, and apt-get cannot install them here: ${missing[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
