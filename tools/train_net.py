#!/usr/bin/env python
"""Trains and evaluates: ``python tools/train_net.py --config FILE [--help for the rest]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.train import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
