#!/usr/bin/env bash
# Downloads Debian's development packages for aarch64 and unpacks them into a folder. Nothing is installed, no root is
# needed, and what apt knows of this machine stays as it is.
set -euo pipefail

folder=${1:?usage: fetch_aarch64.sh FOLDER}
if ! command -v apt-get >/dev/null; then
    echo "error: no apt-get, expected Debian or Ubuntu" >&2
    echo "  fix: give a folder with PCRE2, utf8proc and nlohmann-json for aarch64: -DAWQ2TRT_CROSS_ROOT=FOLDER" >&2
    exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/packages"
options=(
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)"
    -o Dir::State::Lists="$scratch/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$scratch/cache"
)
apt-get "${options[@]}" -qq update
(cd "$scratch/packages" && apt-get "${options[@]}" -qq download libpcre2-dev libutf8proc-dev nlohmann-json3-dev)
for package in "$scratch"/packages/*.deb; do
    dpkg-deb --extract "$package" "$scratch/root"
done
mv "$scratch/root" "$folder"
