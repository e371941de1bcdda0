#!/usr/bin/env bash
# README's first commands in a scratch Debian, unattended, ending in a flight. As root, with debootstrap:
#   scripts/readme_in_debian.sh bookworm|trixie [FOLDER]
# The Debian is made in FOLDER (default: one below /var/tmp) and removed in the end. What is committed is what runs there.
#   MIRROR=...         of Debian; default: debootstrap's own
#   BIND="/a /b"       folders of this machine that are seen there too, read-only (a mirror of packages)
#   WITH_TESTS=1       also `make test`, which takes a quarter of an hour
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:?name a suite: bookworm (Debian 12) or trixie (Debian 13)}
folder=${2:-$(mktemp -d /var/tmp/readme-XXXXXX)}/root
mkdir -p "${folder%/root}"
started=$SECONDS

[ "$(id -u)" = 0 ] || { echo "readme_in_debian: it makes a Debian, which takes root" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "readme_in_debian: no debootstrap: apt-get install debootstrap" >&2; exit 2; }

mounted=()
finish() {
    for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount -l "${mounted[i]}" || true; done
    rm -rf --one-file-system "$folder"
}
trap finish EXIT
show() { # a folder of this machine, at the same place there; with "ro" read-only
    mkdir -p "$folder$1"
    mount --bind "$1" "$folder$1"
    mounted+=("$folder$1")
    [ -z "${2:-}" ] || mount -o remount,bind,"$2" "$folder$1"
}

# Lines of the fenced blocks without a language, in the section of that name.
commands() {
    awk -v section="## $1" '$0 == section {inside = 1; next} /^## / {inside = 0}
        inside && /^```/ {fenced = !fenced && $0 == "```"; next} inside && fenced && NF' README.md
}

# Recommended by README's first sentence: nothing but make, bash and git's files has to be there before.
debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$folder" ${MIRROR:+"$MIRROR"} >"$folder.log" 2>&1 ||
    { tail -n 20 "$folder.log" >&2; exit 1; }
project=/srv/streampilot # there
mkdir -p "$folder$project"
git archive HEAD | tar -x -C "$folder$project"
# The network as this machine has it: its name servers, pip's index, and the authorities it trusts (a proxy may have its own).
for name in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do [ ! -e "$name" ] || cp -L "$name" "$folder$name"; done
for name in /proc /sys /dev /dev/shm; do show "$name"; done
for name in ${BIND:-}; do show "$name" ro; done

echo "readme_in_debian: $suite is there after $((SECONDS - started)) s: $(cat "$folder/etc/debian_version")"
while read -r line; do
    if [ "$line" = "make test" ] && [ -z "${WITH_TESTS:-}" ]; then
        echo "readme_in_debian: left out: $line"
        continue
    fi
    echo "readme_in_debian: \$ $line"
    env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${PIP_EXTRA_INDEX_URL:+PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL"} \
        ${PIP_FIND_LINKS:+PIP_FIND_LINKS="$PIP_FIND_LINKS"} ${http_proxy:+http_proxy="$http_proxy"} \
        ${https_proxy:+https_proxy="$https_proxy"} \
        chroot "$folder" bash -ec "cd $project && $line" </dev/null
done < <(commands "Two commands")
# The flight left its judgement behind.
grep -q '"success": true' "$folder$project/runs/latest/summary.json"
echo "readme_in_debian: $suite: README's commands end in a flight, after $((SECONDS - started)) s"
