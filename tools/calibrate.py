#!/usr/bin/env python
"""Calibrates a detector: ``python tools/calibrate.py --run FOLDER [--help for more]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.calibrate import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
