"""Memory and time that it takes to inspect and convert a large optimizer state.

    python -m benchmarks.checkpoints [--numbers 250e6] [--folder FOLDER]

Makes a Keras 3 model of dense layers whose weights and moments are so many float32 numbers (250
million are 1 GB), and runs the command `adamx` on it: peak memory of the whole process, against the
size of the file that is read; time against a plain copy of that file to the same disk, both with
fsync, in turns, median of `--repeats`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

LAYERS = 24
COLUMNS = "{:56} {:>8} {:>8} {:>6} {:>7} {:>7} {:>6}"


def main() -> None:
    """Print a line for every command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--numbers", type=float, default=250e6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; a temporary one if not"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        width = round((arguments.numbers / 3 / LAYERS) ** 0.5)
        make_archive(folder / "a.keras", width)
        make_h5(folder / "a.h5", width)
        convert(folder / "a.keras", folder / "a.safetensors")
        print(COLUMNS.format("command", "size", "memory", "ratio", "copy", "time", "ratio"))
        for source in ("a.keras", "a.h5", "a.safetensors"):
            report(["inspect", source], folder, arguments.repeats)
        routes = [
            ["a.keras", "b.safetensors"],
            ["a.h5", "b.safetensors"],
            ["a.safetensors", "b.keras", "--template", "a.keras"],
            ["a.safetensors", "b.h5", "--template", "a.h5"],
            ["a.safetensors", "b.pt", "--set", "convention=torch"],
            ["a.pt", "b.safetensors"],
        ]
        if has_torch():
            make_torch(folder / "a.pt", round((arguments.numbers / 2 / LAYERS) ** 0.5))
        else:
            print("torch is not installed: its files are left out")
            routes = routes[:-2]
        for route in routes:
            report(["convert", *route, "--force"], folder, arguments.repeats)


def report(command: list[str], folder: Path, repeats: int) -> None:
    """Run a command and a plain copy of its source in turns."""
    source = next(folder / word for word in command if (folder / word).is_file())
    size = source.stat().st_size
    copies, runs, peaks = [], [], []
    for _ in range(repeats):
        copies.append(copy_seconds(source, folder / "copy"))
        seconds, peak = run(command, folder)
        runs.append(seconds)
        peaks.append(peak)
    copied, ran, peak = statistics.median(copies), statistics.median(runs), max(peaks)
    cells = [f"{size / 1e9:.2f} GB", f"{peak / 1e9:.2f} GB", f"{peak / size:.2f}"]
    cells += [f"{copied:.2f} s", f"{ran:.2f} s", f"{ran / copied:.2f}"]
    print(COLUMNS.format(" ".join(command), *cells), flush=True)


def copy_seconds(source: Path, target: Path) -> float:
    """How long a plain copy takes until it is on the disk."""
    target.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    with source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 22)
        os.fsync(new.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def run(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of `python -m adamx`, interpreter and imports included."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "adamx", *command], cwd=folder, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"adamx {' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def convert(source: Path, target: Path) -> None:
    """Convert a file once."""
    run(["convert", source.name, target.name], source.parent)


def has_torch() -> bool:
    """Whether torch can be imported."""
    return not subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True
    ).returncode


def entries(width: int) -> dict[str, np.ndarray]:
    """The weights by name."""
    rng = np.random.default_rng(0)
    return {
        f"dense{index}/{role}": rng.standard_normal(shape, np.float32)
        for index in range(LAYERS)
        for role, shape in (("kernel", (width, width)), ("bias", (width,)))
    }


def make_archive(path: Path, width: int) -> None:
    """A `.keras` file, as Keras 3 writes it."""
    layers = [
        {"class_name": "Dense", "config": {"name": f"dense{index}", "use_bias": True}}
        for index in range(LAYERS)
    ]
    optimizer = {"class_name": "Adam", "config": settings()}
    config = {
        "class_name": "Sequential",
        "config": {"name": "sequential", "layers": layers},
        "compile_config": {"optimizer": optimizer},
    }
    inner = path.with_suffix(".inner")
    with h5py.File(inner, "w") as file:
        slots = [np.array(100), np.array(1e-3, np.float32)]
        for index, (name, weight) in enumerate(entries(width).items()):
            layer = index // 2
            group = f"layers/dense{f'_{layer}' if layer else ''}/vars"
            file[f"{group}/{index % 2}"] = weight
            file[group].attrs["name"] = name.partition("/")[0]
            slots += [weight * np.float32(0.1), weight * weight]
        for index, array in enumerate(slots):
            file[f"optimizer/vars/{index}"] = array
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config))
        archive.write(inner, "model.weights.h5")
    inner.unlink()


def make_h5(path: Path, width: int) -> None:
    """A whole-model `.h5` file, as tf_keras writes it."""
    weights = entries(width)
    optimizer = {"class_name": "Custom>Adam", "config": settings() | {"is_legacy_optimizer": False}}
    del optimizer["config"]["loss_scale_factor"]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.21.0"
        file.attrs["training_config"] = json.dumps({"optimizer_config": optimizer})
        model, slots = file.create_group("model_weights"), file.create_group("optimizer_weights")
        layers = list(dict.fromkeys(name.partition("/")[0] for name in weights))
        model.attrs["layer_names"] = np.array(layers, "S")
        names = ["iteration:0"]
        slots["iteration:0"] = np.array(100)
        for layer in layers:
            own = [f"{name}:0" for name in weights if name.startswith(f"{layer}/")]
            model.create_group(layer).attrs["weight_names"] = np.array(own, "S")
        for name, weight in weights.items():
            model[f"{name.partition('/')[0]}/{name}:0"] = weight
            for kind, array in (("m", weight * np.float32(0.1)), ("v", weight * weight)):
                names.append(f"Adam/{kind}/{name}:0")
                slots[names[-1]] = array
        slots.attrs["weight_names"] = np.array(names, "S")


def make_torch(path: Path, width: int) -> None:
    """An optimizer's state dict, as torch writes it; in a process of its own."""
    program = f"""
import torch
shapes = [s for _ in range({LAYERS}) for s in (({width}, {width}), ({width},))]
parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
optimizer = torch.optim.Adam(parameters)
for parameter in parameters:
    parameter.grad = torch.randn_like(parameter)
optimizer.step()
torch.save(optimizer.state_dict(), {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def settings() -> dict[str, object]:
    """The configuration of an optimizer of Keras 3."""
    return {
        "name": "adam",
        "learning_rate": 1e-3,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-7,
        "amsgrad": False,
        "loss_scale_factor": None,
    }


if __name__ == "__main__":
    main()
