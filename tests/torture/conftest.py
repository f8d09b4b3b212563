"""The torture tests: a short form in every run of pytest, the whole form with `make torture`.

RAMBO_DET_TORTURE=whole asks for the whole form.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

WHOLE = os.environ.get("RAMBO_DET_TORTURE") == "whole"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table: of each theme, a file of tests, what was tried, what survived, what was lost."""
    if not WHOLE:
        return
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    notes: set[str] = set()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            theme = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_").replace("_", " ")
            properties = dict(report.user_properties)
            notes.update({properties["note"]} if "note" in properties else ())
            # One test may be of many cases; the first that fails ends it.
            survived = properties.get("cases", 1) if outcome == "passed" else 0
            lost, skipped = int(outcome in ("failed", "error")), int(outcome == "skipped")
            row = (survived + lost, survived, lost, skipped)
            counts[theme] = [a + b for a, b in zip(counts[theme], row, strict=True)]
    if not counts:
        return
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    terminalreporter.section("torture")
    line = "{:28s} {:>8} {:>9} {:>6} {:>8}"
    terminalreporter.write_line(line.format("theme", "tried", "survived", "lost", "skipped"))
    for theme, row in counts.items():
        terminalreporter.write_line(line.format(theme, *row))
    for note in sorted(notes):
        terminalreporter.write_line(note)
