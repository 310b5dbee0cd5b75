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
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
# Several processes, of one thread each: threads that wait for each other take far longer. Files in
# their order, the long ones of whole commands first. What interrupts itself within a time goes alone.
alone=tests/integration/test_execution.py
OMP_NUM_THREADS=1 .venv/bin/python -m pytest \
    -n auto --dist loadfile --no-loadscope-reorder --ignore "$alone"
exec .venv/bin/python -m pytest "$alone"
