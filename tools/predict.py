#!/usr/bin/env python
"""Detects in images, videos: ``python tools/predict.py --run FOLDER INPUT… [--help for more]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.predict import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
