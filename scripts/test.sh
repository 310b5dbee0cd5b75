#!/bin/sh
# Sets everything up and runs all checks: scripts/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
