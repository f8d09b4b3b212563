#!/usr/bin/env python
"""Trains with a LazyConfig: ``python tools/lazyconfig_train_net.py --config FILE.py KEY=VALUE``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.train import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(lazy=True))
