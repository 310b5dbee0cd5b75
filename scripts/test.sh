#!/bin/sh
# Sets everything up and runs all checks: scripts/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh
if ! command -v tckgen >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends mrtrix3 >/dev/null
    else
        echo "MRtrix3 3.0.3 or newer is needed for its tests (Debian: mrtrix3)" >&2
        exit 69
    fi
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
