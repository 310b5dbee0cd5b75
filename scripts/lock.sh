#!/bin/sh
# Writes requirements.lock, every package of the container with the hashes of its files, from
# pyproject.toml and constraints.txt: scripts/lock.sh [options of uv]
# It needs uv (pip install uv) and keeps versions that still fit; --upgrade takes the newest ones.
# torch itself is left to the Dockerfile: its builds for processors and GPUs are different files. What
# it needs besides is locked for processors; TORCH_BACKEND= says none, where its index is not reached.
set -eu
cd "$(dirname "$0")/.."
backend=${TORCH_BACKEND-cpu}
UV_CUSTOM_COMPILE_COMMAND=scripts/lock.sh exec uv pip compile --quiet \
    ${backend:+--torch-backend "$backend"} "$@" \
    --generate-hashes --no-annotate --python-version 3.11 --constraints constraints.txt \
    --no-emit-package torch --output-file requirements.lock pyproject.toml
