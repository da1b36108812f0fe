"""Facts about the machine that measured something, for reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from compress.kernels.backends import kernels_in_use

_PACKAGES = ("torch", "diffusers", "onnxruntime", "onnx", "numpy")
_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def machine_facts() -> dict[str, str | float | int | None]:
    """Processor, cores, threads, memory, platform, kernels and library versions; a package not installed is None.

    Versions come from package metadata: nothing is imported for them.
    """
    facts: dict[str, str | float | int | None] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory_gb(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels_in_use(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
    return facts | {package: _version(package) for package in _PACKAGES}


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Installed memory in GB (10^9 bytes), or None where it cannot be told."""
    if _MEMINFO.is_file():
        kib = int(_MEMINFO.read_text().split("MemTotal:")[1].split()[0])
        return round(kib * 1024 / 1e9, 1)
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
