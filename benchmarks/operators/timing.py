"""Timing of competitors in turns: every round gives each a slice of time, and a pause before it.

Threads of most libraries wait busily for a moment after their work. The pause lets those of one provider fall asleep
before the next one starts; one untimed call then wakes its own threads and brings its weights to the caches.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.peers import Run
from compress.evaluate.latency import Timings

MOST_CALLS = 200


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: turns of every provider.
        seconds: timed calls of one provider over all rounds; a round has one call at least.
        settle: pause before a provider's turn, seconds.
    """

    rounds: int = 5
    seconds: float = 0.5
    settle: float = 0.01

    def calls(self, estimate: float) -> int:
        """Timed calls of a round for a run of that many seconds a call."""
        return max(1, min(MOST_CALLS, int(self.seconds / self.rounds / max(estimate, 1e-9))))


def interleaved(
    runs: Mapping[str, Run], budget: Budget, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Timings]:
    """Milliseconds of each run by name: one sample a round, the median of its timed calls. Each round starts with the
    next run."""
    names, samples = list(runs), {name: list[float]() for name in runs}
    calls = {name: budget.calls(min(run.seconds(2))) for name, run in runs.items()}
    gc.collect()
    gc.disable()
    try:
        for turn in range(budget.rounds):
            first = turn % len(names) if names else 0
            for name in names[first:] + names[:first]:
                sleep(budget.settle)
                runs[name].seconds(1)
                samples[name].append(1000 * median(runs[name].seconds(calls[name])))
    finally:
        gc.enable()
    return {name: Timings(tuple(values)) for name, values in samples.items()}
