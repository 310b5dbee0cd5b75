#!/bin/sh
# Sets everything up and runs bsym-demo: scripts/demo.sh OUT
set -eu
here=$(dirname "$0")
"$here/setup.sh"
exec "$here/../.venv/bin/bsym-demo" "$@"
