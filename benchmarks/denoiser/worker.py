"""A process that holds one opened model and runs it when asked, so that runtimes share neither threads nor memory.

It reads one JSON object a line: first what to open (`runtime`, `file`, `inputs`, `threads`, `settings`, `profile`),
then `{"calls": n}` for timed calls, `{"save": path}` for the output, `{"breakdown": n}` for time by operator. It
answers each with one line. Memory is measured while it opens the model and runs it once (`compress.evaluate.memory`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.evaluate.memory import run_measured

Infer = Callable[[Mapping[str, Any]], Any]
_INTERVAL = 0.002


class Opened:
    """A runtime's model; `open` and the first `run` are what memory is measured of."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        numpy: Any = importlib.import_module("numpy")
        self.asked = asked
        self.inputs = dict(numpy.load(asked["inputs"]).items())
        self.open: Callable[[Mapping[str, Any]], Infer] = RUNTIMES[asked["runtime"]]()
        self.infer: Infer = lambda given: None
        self.seconds = {"open": 0.0, "first_run": 0.0}

    def open_and_run(self) -> None:
        """Open the file and call it once."""
        start = time.perf_counter()
        self.infer = self.open(self.asked)
        opened = time.perf_counter()
        self.run()
        self.seconds = {"open": opened - start, "first_run": time.perf_counter() - opened}

    def run(self) -> Any:
        return self.infer(self.inputs)

    def times(self, calls: int) -> list[float]:
        found = []
        for _ in range(calls):
            start = time.perf_counter()
            self.run()
            found.append(time.perf_counter() - start)
        return found


def _compress() -> Callable[[Mapping[str, Any]], Infer]:
    ours: Any = importlib.import_module("compress.onnx")
    runtime: Any = importlib.import_module("onnxruntime")

    def open_file(asked: Mapping[str, Any]) -> Infer:
        with _profiling(runtime, asked.get("profile")):
            session = ours.session(asked["file"], threads=asked["threads"])
        return SessionInfer(session)

    return open_file


@contextlib.contextmanager
def _profiling(runtime: Any, prefix: str | None) -> Any:
    """Sessions opened inside write a profile: `compress.onnx.session` has no such option, and needs none elsewhere."""
    original = runtime.SessionOptions

    def options() -> Any:
        made = original()
        made.enable_profiling, made.profile_file_prefix = True, prefix
        return made

    if prefix is not None:
        runtime.SessionOptions = options
    try:
        yield
    finally:
        runtime.SessionOptions = original


class SessionInfer:
    """Calls an onnxruntime session; keeps it for `breakdown`."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, given: Mapping[str, Any]) -> Any:
        return self.session.run(None, dict(given))[0]


def _onnxruntime() -> Callable[[Mapping[str, Any]], Infer]:
    runtime: Any = importlib.import_module("onnxruntime")

    def open_file(asked: Mapping[str, Any]) -> Infer:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = asked["threads"], 1
        return SessionInfer(runtime.InferenceSession(asked["file"], options, providers=["CPUExecutionProvider"]))

    return open_file


def _openvino() -> Callable[[Mapping[str, Any]], Infer]:
    openvino: Any = importlib.import_module("openvino")

    def open_file(asked: Mapping[str, Any]) -> Infer:
        settings = {"INFERENCE_NUM_THREADS": asked["threads"], "NUM_STREAMS": 1, **asked.get("settings", {})}
        request = openvino.Core().compile_model(asked["file"], "CPU", settings).create_infer_request()
        return lambda given: next(iter(request.infer(dict(given)).values()))

    return open_file


RUNTIMES: dict[str, Callable[[], Callable[[Mapping[str, Any]], Infer]]] = {
    "compress": _compress,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def breakdown(events: list[dict[str, Any]], skip: int) -> list[dict[str, Any]]:
    """Time by operator kind from onnxruntime's profile, per call, the first `skip` calls left out; longest first."""
    runs = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    kept = runs[skip:]
    if not kept:
        return []
    kinds: dict[str, tuple[float, int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= kept[0]:
            kind = event["args"]["op_name"]
            time_us, count = kinds.get(kind, (0.0, 0))
            kinds[kind] = (time_us + event["dur"], count + 1)
    total = sum(time_us for time_us, _ in kinds.values()) or 1.0
    rows = [
        {"op": kind, "ms": t / 1000 / len(kept), "share": t / total, "nodes": round(count / len(kept))}
        for kind, (t, count) in kinds.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def _answer(opened: Opened, asked: Mapping[str, Any]) -> Any:
    if "calls" in asked:
        return opened.times(int(asked["calls"]))
    if "save" in asked:
        numpy: Any = importlib.import_module("numpy")
        numpy.save(asked["save"], opened.run())
        return asked["save"]
    skip = int(asked["breakdown"])
    session: Any = opened.infer
    opened.times(skip + 3)
    events = json.loads(Path(session.session.end_profiling()).read_text())
    return breakdown(events, skip + 1)  # and the call of opening


def main() -> None:
    """Serve standard input until it ends."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints
        opened = Opened(json.loads(sys.stdin.readline()))
        memory = run_measured(opened.open_and_run, {}, _INTERVAL)
        print(json.dumps({"memory": memory._asdict(), "seconds": opened.seconds}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(opened, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
