"""How fast a step of Adam is: adamx beside Optax, PyTorch, Keras, and a plain loop in C++.

Run it on a machine with nothing else to do, on the processor alone:

    python -m benchmarks --json speed.json --plot speed.png
    python -m benchmarks --workloads mlp,gpt2 --contenders step,packed,optax --rounds 100
    python -m benchmarks --moments bfloat16
    python -m benchmarks --moments 8bit --workloads gpt2,leaf64m
    python -m benchmarks --in-graph 20

Workloads: `mlp`, `resnet50` and `gpt2` have the shapes of these networks; `leaf1m` and `leaf64m`
are one leaf of 1 and of 64 million parameters; `leaves1000` is a thousand leaves of 3,500. All are
float32. The largest needs 13 GB of memory with every contender.

Contenders: adamx's `fused_adam(...).step` ("step"), the same with packed=True ("packed"), and
`adam().update` with `optax.apply_updates` ("update"); `optax.adam` in the same way ("optax");
`torch.optim.Adam` with fused=True and with foreach=True; Keras 3's `stateless_apply` ("keras"); and
the "limit": one plain loop in C++ over arrays of the same kind, compiled for this processor, its
work split between the threads. What JAX compiles has its parameters and state donated. Before the
clock starts, everyone's parameters are compared with optax's after a few steps.

With `--moments 8bit` others are compared, all with weight decay, beside the fused step in float32:
`fused_adamw(...).step` with moments in float32 ("float32"), bfloat16 ("bfloat16") and 8 bits
("8bit"); `adamw().update` with moments in 8 bits ("update-8bit"); `optax.adamw` ("optax"); and the
package flashoptim-jax, which has no kernel for CPUs ("flashoptim").

Figures: in each round everyone is timed once, one step after the other until at least 5 ms are
over, and only then waited for, as in a loop that trains. The time is the median over rounds.
"Times as fast" is the time of optax, or of float32, over the contender's in the same round: the
median and the quartiles. "Memory" is what XLA says that a step takes at most, gradients included,
as a multiple of the parameters: 4 is the least, 3 with bfloat16. At the end stand ratios of times,
a/b: how many times as long a takes as b. A limit/step of 1 means: as fast as the plain loop.
"""

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax

import adamx
from benchmarks.measure import Result, measure
from benchmarks.races import RACES
from benchmarks.report import about, as_json, summary, table
from benchmarks.workloads import WORKLOADS


def _names(known: Sequence[str], text: str) -> list[str]:
    """The names in a list with commas, in the order in which they are known."""
    given = text.split(",")
    if unknown := [name for name in given if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected {', '.join(known)}")
    return [name for name in known if name in given]


def _number(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least {least}")
    return int(text)


def _file(text: str, suffixes: Sequence[str]) -> Path:
    """A file that can be written in the end, which is a long time after the beginning."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{text}: expected a name in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected a file in a folder that is there")
    return path


def _picture(text: str) -> Path:
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("a picture needs matplotlib: pip install matplotlib")
    return _file(text, (".png", ".svg", ".pdf"))


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    workloads = list(WORKLOADS)
    add(
        "--workloads",
        type=lambda text: _names(workloads, text),
        default=workloads,
        metavar="A,B",
        help=f"which of {', '.join(workloads)}; all",
    )
    add(
        "--contenders",
        metavar="A,B",
        help="which of the names above, of those that take part; all. The one that the others are "
        "compared with is always there",
    )
    add("--rounds", type=lambda text: _number(1, text), default=30, help="30")
    add("--seconds", type=float, help="begin no more rounds of a workload after this time")
    add(
        "--moments",
        choices=RACES,
        default="float32",
        help="the form of both moments in adamx; the others keep float32",
    )
    add(
        "--in-graph",
        type=lambda text: _number(1, text),
        default=0,
        metavar="K",
        help="time K steps in a loop of JAX in one call, of those who can",
    )
    add(
        "--json",
        type=lambda text: _file(text, (".json",)),
        metavar="FILE.json",
        help="write everything, with the samples",
    )
    add("--plot", type=_picture, metavar="FILE.png", help="draw a picture; needs matplotlib")
    options = parser.parse_args()
    race = RACES[options.moments]
    try:
        given = _names(list(race.contenders), options.contenders or ",".join(race.contenders))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --contenders: {error}")
    options.contenders = [name for name in race.contenders if name in given or name == race.base]
    return options


def main() -> None:
    options = _options()
    jax.config.update("jax_platforms", "cpu")
    threads = _cores()
    status = adamx.native.status()
    if not status:
        print(f"adamx is measured WITHOUT its compiled kernel: {status.reason}\n")
    machine = about(threads)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, threads: {threads}\n{versions}\nadamx: {machine['kernel']}\n")

    results: dict[str, Result] = {}
    for workload in options.workloads:
        results[workload] = measure(
            workload,
            options.contenders,
            options.moments,
            threads,
            options.in_graph,
            options.rounds,
            options.seconds,
        )
        print(table(workload, results[workload]), end="\n\n", flush=True)
    print(*summary(results), sep="\n")

    if options.json:
        arguments = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
        }
        content = as_json(arguments, threads, results)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        from benchmarks.picture import draw

        moments = f", {options.moments} moments in adamx" if options.moments == "bfloat16" else ""
        in_graph = f", {options.in_graph} steps in one call" if options.in_graph else ""
        draw(
            results, f"{machine['processor']}, threads: {threads}{moments}{in_graph}", options.plot
        )


if __name__ == "__main__":
    main()
