"""The tests on every interpreter found, and with the oldest packages that pyproject.toml allows."""

import platform
import shutil
from glob import glob
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

TORCH = "torch==2.13.0"  # the CPU build is enough
TF11 = (
    "tensorflow==1.1.0",
    "numpy==1.16.6",
    "protobuf==3.19.6",
    "h5py==2.10.0",
    "werkzeug==1.0.1",
    "six==1.15.0",
)
EXTRAS = ("checkpoint", "test", "examples")
ALL_TESTS = ("pytest", "--numprocesses=2")
KERNEL_IN_USE = "import adamx; print(adamx.native.status()); assert adamx.native.status()"
EXAMPLES = ("train_digits", "conventions", "keras_facade", "resume_from_keras")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The newest packages; Python 3.12 and later get a newer JAX than 3.11 does."""
    session.install("-e", ".[test]")
    session.run("python", "-c", "import jax; print('jax', jax.__version__)")
    session.run(*ALL_TESTS, *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The oldest packages allowed, of the extras too."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    bounds = [*project["dependencies"], *(b for e in EXTRAS for b in extras[e])]
    pinned = [bound.replace(">=", "==") for bound in bounds if not bound.startswith("adamx[")]
    session.install("-e", ".", *pinned)
    session.run(*ALL_TESTS, *session.posargs)
    for example in EXAMPLES:
        session.run("python", f"examples/{example}.py", "--out", session.create_tmp())
    session.run("python", "examples/fused_step.py")


@nox.session(python="3.11")
def native(session: nox.Session) -> None:
    """The kernel's own tests: plain, with sanitizers, and for 64-bit Arm where that can be run."""
    session.install("jax", "cmake", "ninja")
    run_kernel_tests(session, "plain")
    for name in ("thread", "address,undefined"):
        run_kernel_tests(session, name.partition(",")[0], f"-DADAMX_SANITIZE={name}")
    arm = "aarch64-linux-gnu-g++"
    if shutil.which(arm) is None or shutil.which("qemu-aarch64") is None:
        session.warn(f"not run for 64-bit Arm: {arm} or qemu-aarch64 was not found")
        return
    options = (
        f"-DCMAKE_CXX_COMPILER={arm}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    run_kernel_tests(session, "aarch64", *options, emulator=("qemu-aarch64",))


def run_kernel_tests(
    session: nox.Session, variant: str, *options: str, emulator: tuple[str, ...] = ()
) -> None:
    """Build the kernel's tests with these options of CMake, and run them."""
    build = Path(session.create_tmp()).resolve() / variant
    source = Path("adamx/native").resolve()
    configure = ("-S", str(source), "-B", str(build), "-G", "Ninja", "-DADAMX_TESTS=ON")
    session.run("cmake", *configure, *options)
    session.run("cmake", "--build", str(build), "--target", "adamx_kernel_test")
    session.run(*emulator, str(build / "adamx_kernel_test"), external=True)


@nox.session(python="3.13")
def wheel(session: nox.Session) -> None:
    """The wheel, installed in an environment without the sources, runs the tests."""
    folder = Path(session.create_tmp()).resolve()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    [built] = folder.glob("adamx-*.whl")
    session.install(f"adamx[test] @ {built.as_uri()}")
    copy = folder / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("tests", "examples", "benchmarks", "docs", ".ci"):
        shutil.copytree(name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(name, copy)
    built.unlink()
    with session.chdir(copy):
        session.run("python", "-c", KERNEL_IN_USE)
        session.run(*ALL_TESTS, "tests", *session.posargs)


@nox.session(python="3.11")
def without_kernel(session: nox.Session) -> None:
    """An installation where nothing compiles, and the fused step in plain form."""
    session.install("-e", ".[test]", env={"CXX": "/bin/false"})
    session.run("python", "-c", KERNEL_IN_USE.replace("status()", "status().in_use is False"))
    session.run("pytest", "tests/fused", "tests/native", "tests/test_readme.py", *session.posargs)


@nox.session(python="3.12")
def scaling(session: nox.Session) -> None:
    """Several connected processes, and the examples of what is larger than one device."""
    session.install("-e", ".[test,examples]")
    session.run("pytest", "-m", "processes", "tests", *session.posargs)
    session.run("python", "examples/data_parallel.py")
    session.run("python", "examples/preemptible.py", "--out", session.create_tmp())
    session.run("python", "examples/low_precision.py")


@nox.session(python="3.12")
def tpu(session: nox.Session) -> None:
    """What the compiler for TPUs makes of a step; it needs no TPU."""
    if platform.machine() != "x86_64":
        session.skip(f"the compiler for TPUs is there for x86_64, not for {platform.machine()}")
    session.install("-e", ".[test]", "jax[tpu]")
    session.run("pytest", "-m", "live", "tests/live/test_tpu.py", *session.posargs)


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Mutated and damaged checkpoints; writers and runs that are killed. -rP prints the counts."""
    session.install("-e", ".[test,examples]", TORCH)
    session.run(
        *ALL_TESTS, "-m", "fuzz", "-rP", "--show-capture=stdout", "tests/fuzz", *session.posargs
    )


@nox.session(python="3.11")
def torch(session: nox.Session) -> None:
    """The files of torch, the comparison with it, and its column in the table of accuracy."""
    session.install("-e", ".[test,examples]", TORCH)
    session.run("python", "-m", "benchmarks.accuracy")
    session.run("pytest", "tests/checkpoint", "tests/cli", *session.posargs)
    session.run("pytest", "-m", "live", *glob("tests/live/test_torch*.py"), *session.posargs)
    session.run("python", "examples/resume_from_torch.py", "--out", session.create_tmp())


@nox.session(python="3.11")
def keras3(session: nox.Session) -> None:
    """The comparison with Keras 3, which runs on JAX, and its way with the files written for it."""
    session.install("-e", ".[test]", "keras>=3.15")
    files = glob("tests/live/test_keras3*.py")
    session.run("pytest", "-m", "live", *files, *session.posargs, env={"KERAS_BACKEND": "jax"})


@nox.session(python="3.11")
def tf_keras(session: nox.Session) -> None:
    """tf_keras's way with the files written for it, where TensorFlow installs."""
    session.install("tensorflow-cpu", "tf_keras")
    session.install("-e", ".[test]")
    files = glob("tests/live/test_tf_keras*.py")
    session.run("pytest", "-m", "live", *files, *session.posargs)


@nox.session(python="3.11")
def tf11(session: nox.Session) -> None:
    """TensorFlow 1.1's way with the files written for it, where its last CPython is found."""
    python = shutil.which("python3.6")
    if python is None:
        session.skip("TensorFlow 1.1 needs CPython 3.6, which was not found")
    folder = Path(session.create_tmp()).resolve() / "tf11"
    session.run(python, "-m", "venv", str(folder), external=True)
    session.run(str(folder / "bin/pip"), "install", "--no-deps", *TF11, external=True)
    session.install("-e", ".[test]")
    env = {"ADAMX_TF11_PYTHON": str(folder / "bin/python")}
    files = glob("tests/live/test_tf11*.py")
    session.run("pytest", "-m", "live", *files, *session.posargs, env=env)
