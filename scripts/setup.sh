#!/bin/sh
# Makes .venv beside this repository with bsym-bids and its tested versions. Run by the scripts
# beside it; running it again is quick.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq python3 python3-venv >/dev/null
    else
        echo "Python 3.11 or newer with its venv module is needed (Debian: python3-venv)" >&2
        exit 69
    fi
fi

stamp=.venv/installed
if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv
fi
if ! [ "$stamp" -nt pyproject.toml ] || ! [ "$stamp" -nt constraints.txt ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".[test]"
    touch "$stamp"
fi
