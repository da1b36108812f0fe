from collections.abc import Callable

import pytest

from compress.errors import InputError
from compress.evaluate.latency import Timings, interleaved_latency, latency_metric, speedup_metric


class Clock:
    """A clock that only the timed functions advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float) -> Callable[[], None]:
        """A function that takes these seconds in turn, then the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_warm_up_is_left_out_and_rounds_rotate() -> None:
    clock = Clock()
    jobs = {"a": clock.taking("a", 9, 1, 2, 3), "b": clock.taking("b", 5), "c": clock.taking("c", 0.5)}
    found = interleaved_latency(jobs, rounds=3, warmup=1, clock=clock)
    assert found["a"].samples == pytest.approx((1000, 2000, 3000))
    assert found["b"].samples == pytest.approx((5000,) * 3)
    assert "".join(clock.calls) == "cab" + "abc" + "bca" + "cab"


def test_median_and_quartiles() -> None:
    timings = Timings((4, 1, 3, 2, 100))
    assert timings.median == 3
    assert timings.quartiles == (2, 4)
    assert Timings((7.0,)).quartiles == (7, 7)


def test_latency_metric() -> None:
    metric = latency_metric(Timings((1, 2, 3)), artefact="onnx", labels={"batch": "16"})
    assert (metric.name, metric.value, metric.unit, metric.n) == ("latency_ms", 2, "ms", 3)
    assert metric.spread == {"q1": 1.5, "q3": 2.5} and metric.labels == {"batch": "16"}


def test_speedup_compares_medians_and_pairs_rounds() -> None:
    slow, fast = Timings((10, 20, 40)), Timings((5, 10, 20))
    metric = speedup_metric(slow, fast, artefact="checkpoint")
    assert (metric.value, metric.spread) == (2, {"q1": 2, "q3": 2})  # what slowed a round slowed both
    with pytest.raises(InputError, match="same rounds"):
        speedup_metric(slow, Timings((1,)), artefact="checkpoint")


@pytest.mark.parametrize(("jobs", "rounds", "warmup"), [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, 1, -1)])
def test_nothing_to_time_is_refused(jobs: dict[str, Callable[[], object]], rounds: int, warmup: int) -> None:
    with pytest.raises(InputError, match="nothing to time"):
        interleaved_latency(jobs, rounds, warmup)


def test_the_real_clock_gives_positive_times() -> None:
    found = interleaved_latency({"sum": lambda: sum(range(401))}, rounds=3)
    assert len(found["sum"].samples) == 3 and min(found["sum"].samples) > 0
