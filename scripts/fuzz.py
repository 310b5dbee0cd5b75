#!/usr/bin/env python3
"""Feed broken files to every reader: scripts/fuzz.py [INPUTS [SEED]]; see docs/security.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fuzz"))

from fuzz_runner import main

if __name__ == "__main__":
    sys.exit(main())
