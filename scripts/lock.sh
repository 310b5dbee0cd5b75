#!/bin/sh
# Writes requirements.lock, every package of the container with the hashes of its files, from
# pyproject.toml and constraints.txt: scripts/lock.sh [options of uv instead of --torch-backend cpu]
# It needs uv (pip install uv) and keeps versions that still fit; --upgrade takes the newest ones.
# torch itself is left to the Dockerfile: its builds for processors and GPUs are different files.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --torch-backend cpu
UV_CUSTOM_COMPILE_COMMAND=scripts/lock.sh exec uv pip compile --quiet "$@" \
    --generate-hashes --no-annotate --python-version 3.11 --constraints constraints.txt \
    --no-emit-package torch --output-file requirements.lock pyproject.toml
