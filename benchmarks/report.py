"""What was measured, as text and as JSON."""

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import adamx
from benchmarks.limit import FLAGS
from benchmarks.measure import Result
from benchmarks.timing import Spread, geometric_mean

__all__ = ["about", "as_json", "summary", "table"]

_LARGE = ("leaf64m", "gpt2")
_FEW_LEAVES = ("mlp", "leaf1m", "leaf64m", "resnet50", "gpt2")
_ALL = (*_FEW_LEAVES, "leaves1000")

# The lines of the summary: whose time over whose, on which workloads.
_MEANS = (("optax", "step", _FEW_LEAVES), ("optax", "packed", _ALL))
_SINGLE = (
    ("torch-fused", "packed", _ALL),
    ("limit", "packed", _LARGE),
    ("limit", "step", _LARGE),
)


def about(threads: int) -> dict[str, Any]:
    """Versions and the machine."""
    packages = ("adamx", "jax", "jaxlib", "optax", "numpy", "torch", "keras", "flashoptim-jax")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "processor": _processor(),
        "system": platform.platform(),
        "threads": threads,
        "kernel": adamx.native.status().reason,
        "limit_flags": list(FLAGS),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _with_spread(spread: Spread) -> str:
    return f"{spread.median:6.2f}  {spread.low:6.2f} …{spread.high:6.2f}"


def table(workload: str, result: Result) -> str:
    leaves = "leaf" if result.leaves == 1 else "leaves"
    title = f"{workload}: {result.parameters:,} parameters in {result.leaves:,} {leaves}"
    lines = [
        title,
        f"  {'':14}{'ms':>9}   times as fast as {result.base:8}{'memory':>10}{'compiled in':>14}",
    ]
    for name, measured in result.contenders.items():
        peak = "" if measured.peak is None else f"{measured.peak:.2f}"
        seconds = measured.compile_seconds
        compiled = "" if seconds is None else f"{seconds:.1f} s"
        lines.append(
            f"  {name:14}{result.time(name).median * 1e3:9.3f}   "
            f"{_with_spread(result.speed(name)):25}{peak:>10}{compiled:>14}"
        )
    lines += [f"  {name} skipped: {reason}" for name, reason in result.absent.items()]
    return "\n".join(lines)


def summary(results: Mapping[str, Result]) -> Iterator[str]:
    """The lines below the tables; what was not measured is left out."""

    def having(workloads: tuple[str, ...], *names: str) -> list[str]:
        measured = [name for name in workloads if name in results]
        return [name for name in measured if set(names) <= results[name].contenders.keys()]

    for slow, fast, workloads in _MEANS:
        if found := having(workloads, slow, fast):
            mean = geometric_mean([results[w].speed(fast, slow).median for w in found])
            yield f"{slow}/{fast}: geometric mean {mean:.2f} ({', '.join(found)})"
    for slow, fast, workloads in _SINGLE:
        if found := having(workloads, slow, fast):
            ratios = (f"{w} {results[w].speed(fast, slow).median:.2f}" for w in found)
            yield f"{slow}/{fast}: {', '.join(ratios)}"


def as_json(arguments: Mapping[str, Any], threads: int, results: Mapping[str, Result]) -> Any:
    """All of it, with the samples and with what the tables derive from them."""
    workloads = {}
    for workload, result in results.items():
        content = dataclasses.asdict(result)
        for name, measured in content["contenders"].items():
            measured["time"] = dataclasses.asdict(result.time(name))
            measured["times_as_fast"] = dataclasses.asdict(result.speed(name))
        workloads[workload] = content
    return {"arguments": dict(arguments), **about(threads), "workloads": workloads}
