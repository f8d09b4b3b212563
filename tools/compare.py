#!/usr/bin/env python
"""Compares losses: ``python tools/compare.py --config FILE --losses ce,rambo --seeds 5``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.compare import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
