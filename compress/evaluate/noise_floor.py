"""What two runs of the *same* full-precision model differ by: threads change the order of sums, hence the rounding.

A difference between two models means something only above this floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.noise_error import noise_error
from compress.evaluate.paired import psnr
from compress.report.model import Metric


class TwoRuns(NamedTuple):
    """Outputs of one function at two thread counts."""

    first: Tensor
    second: Tensor
    threads: tuple[int, int]

    @property
    def labels(self) -> dict[str, str]:
        """Marks a metric as a floor, `{"floor": "threads 1 and 2"}`."""
        return {"floor": f"threads {self.threads[0]} and {self.threads[1]}"}


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Torch computes with this many threads inside; the count from before is restored, whatever happens."""
    if threads < 1:
        raise InputError(f"the number of threads must be at least 1, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_twice(function: Callable[[], Tensor], threads: tuple[int, int] = (1, 2)) -> TwoRuns:
    """Both outputs of a function that samples or predicts from fixed inputs, at two thread counts.

    Raises:
        InputError: the counts are equal, or the outputs differ in shape (so the function draws anew on each call).
    """
    if threads[0] == threads[1]:
        raise InputError(f"a noise floor needs two thread counts, got {threads[0]} twice")
    outputs = []
    for count in threads:
        with thread_count(count), torch.inference_mode():
            outputs.append(function().clone())
    if outputs[0].shape != outputs[1].shape:
        raise InputError("the function gave outputs of two shapes", hint="it must compute the same thing on each call")
    return TwoRuns(outputs[0], outputs[1], threads)


def noise_error_floor(runs: TwoRuns, sigma: Tensor, *, bands: int = 8, seed: int = 0) -> list[Metric]:
    """`noise_error` of the full-precision model against itself, overall and per band, labelled `floor`."""
    return _as_floor(noise_error(runs.first, runs.second, sigma, artefact="reference", bands=bands, seed=seed), runs)


def psnr_floor(runs: TwoRuns, *, seed: int = 0) -> list[Metric]:
    """`psnr` of full-precision images against themselves, labelled `floor`; identical images count as 200 dB."""
    return _as_floor(psnr(runs.first, runs.second, artefact="reference", seed=seed), runs)


def _as_floor(metrics: list[Metric], runs: TwoRuns) -> list[Metric]:
    return [metric.model_copy(update={"labels": metric.labels | runs.labels}) for metric in metrics]
