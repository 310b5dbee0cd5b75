#!/bin/sh
# The container by Buildah, where no Docker engine runs:
#   scripts/container.sh base                  makes debian:bookworm-slim where it cannot be pulled
#   scripts/container.sh build [options]       builds localhost/bsym; options go to buildah build
#   scripts/container.sh sizes                 prints what each layer takes
#   scripts/container.sh try OUT [options]     the demo in it: participant level and group level, as
#                                              another user, without network, HOME and a writable
#                                              root; options go to podman run
# Needs root and buildah; "base" needs debootstrap, "sizes" and "try" need podman, which has it all.
set -eu
cd "$(dirname "$0")/.."
image=localhost/bsym
user=1234:1234

base() {
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >"$root.log" ||
        { cat "$root.log" >&2; exit 1; }
    # What this machine needs to reach its package indices, the local image has to know as well.
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/" 2>/dev/null || true
    chroot "$root" update-ca-certificates >/dev/null
    mkdir -p "$root/etc/xdg/pip"
    cp /etc/pip.conf "$root/etc/pip.conf" 2>/dev/null || true
    cp "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$root/etc/xdg/pip/" 2>/dev/null || true
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" / >/dev/null
    buildah config --cmd /bin/bash "$container"
    buildah commit --quiet --rm "$container" localhost/debian:bookworm-slim
}

build() {
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' bsym_bids/__init__.py)
    buildah bud --isolation chroot --network host --format docker --layers \
        --build-arg VERSION="$version" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || true)" \
        --tag "$image" "$@" .
}

sizes() {
    podman history --format json "$image" | python3 -c '
import json, sys
layers = [one for one in json.load(sys.stdin) if one["size"] > 0]
for layer in layers:
    print("{:7.0f} MB  {:.110}".format(layer["size"] / 1e6, " ".join(layer["CreatedBy"].split())))
print("{:7.0f} MB  in all".format(sum(one["size"] for one in layers) / 1e6))'
}

try() {
    mkdir "$1"
    out=$(cd "$1" && pwd)
    chown "$user" "$out"
    shift
    echo "== the dataset"
    inside -v "$out:/out" "$@" --entrypoint bsym-demo "$image" --dataset-only /out/demo
    mkdir "$out/derivatives"
    chown "$user" "$out/derivatives"
    for level in participant group; do
        echo "== $level level"
        inside -v "$out/demo/bids:/data:ro" -v "$out/derivatives:/out" "$@" \
            "$image" /data /out "$level" --model bsym-sim-v1 --preset fast
    done
    echo "== files of others than $user: $(find "$out" ! -uid "${user%:*}" | grep -c .)"
}

# As strict as a clinic's machine: nothing but the folders that are named can be written.
inside() {
    podman run --rm --no-healthcheck --network none --read-only --read-only-tmpfs=false \
        --user "$user" --unsetenv HOME --cap-drop all --security-opt no-new-privileges "$@"
}

case "${1:-}" in
    base | sizes) "$1" ;;
    build) shift; build "$@" ;;
    try) shift; try "$@" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
