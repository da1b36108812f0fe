import json
from pathlib import Path

import pytest
import torch

from compress.evaluate import machine
from compress.evaluate.machine import machine_facts
from compress.kernels.backends import kernels_in_use


def test_facts_name_the_machine_and_the_versions() -> None:
    facts = machine_facts()
    assert facts["cpu"] and facts["platform"]
    assert isinstance(facts["cores"], int) and facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["kernels"] == kernels_in_use()
    json.dumps(facts, allow_nan=False)


def test_absent_packages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PACKAGES", ("no-such-package",))
    assert machine_facts()["no-such-package"] is None


def test_facts_do_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    facts = machine_facts()
    assert facts["cpu"] and facts["memory_gb"] is None
