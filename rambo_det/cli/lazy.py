"""``rambo-train`` for LazyConfigs; the main of tools/lazyconfig_train_net.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import train


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 2 after a user's mistake."""
    return train.main(argv, lazy=True)


if __name__ == "__main__":
    sys.exit(main())
