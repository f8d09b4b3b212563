"""How far a comparison is: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

#: Seconds between lines where there is no terminal.
_PERIOD = 60.0


class Progress:
    """Counts iterations of all runs together.

    Args:
        total: iterations of all runs.
        done: of them before this start.
        runs: number of runs.
        finished: of them before this start.
        stream: where to write.
    """

    def __init__(
        self, total: int, done: int, runs: int, finished: int, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stdout
        self._total, self._start, self._done = total, done, done
        self._runs, self._finished = runs, finished
        self._evaluating: list[str] = []
        self._began = self._last = self._changed = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, initial=done, unit="it", file=self._stream,
                             dynamic_ncols=True, smoothing=0.05, mininterval=0,
                             miniters=1)  # fmt: skip
            self._bar.set_description(self._count())

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def update(self, done: int, finished: int, evaluating: Sequence[str] = ()) -> None:
        """Shows that so many iterations, and runs, are done by now, and which runs evaluate."""
        changed = (finished, list(evaluating)) != (self._finished, self._evaluating)
        if done != self._done:
            self._changed = time.monotonic()
        self._done, self._finished, self._evaluating = done, finished, list(evaluating)
        if self._bar is not None:
            if done != self._bar.n:
                self._bar.update(done - self._bar.n)  # its speed is that between changes
            self._bar.set_description(self._count(), refresh=False)
            self._bar.refresh()
        elif changed or time.monotonic() - self._last > _PERIOD:
            self._last = time.monotonic()
            self.say(f"{self._count()}, iteration {done} of {self._total}, {self._left()}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _count(self) -> str:
        doing = f", evaluating {'; '.join(self._evaluating)}" if self._evaluating else ""
        return f"{self._finished} of {self._runs} runs{doing}"

    def _left(self) -> str:
        # Iterations become known many at a time: what came since then is in neither number.
        made, elapsed = self._done - self._start, self._changed - self._began
        if self._done >= self._total:
            return "no iteration left"
        if made <= 0:
            return "time left unknown yet"
        seconds = elapsed * (self._total - self._done) / made
        return f"about {tqdm.format_interval(seconds)} left"
