"""The tests on every interpreter found, and with the oldest packages that pyproject.toml allows."""

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The newest packages; Python 3.12 and later get a newer JAX than 3.11 does."""
    session.install("-e", ".[test]")
    session.run("python", "-c", "import jax; print('jax', jax.__version__)")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The oldest packages allowed, of the extras too."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    bounds = [*project["dependencies"], *extras["test"], *extras["examples"]]
    session.install("-e", ".", *(bound.replace(">=", "==") for bound in bounds))
    session.run("pytest", *session.posargs)
    for example in ("train_digits", "conventions", "keras_facade"):
        session.run("python", f"examples/{example}.py", "--out", session.create_tmp())


@nox.session(python="3.11")
def torch(session: nox.Session) -> None:
    """The accuracy table with torch in it, and the comparison; the CPU build is enough."""
    session.install("-e", ".[test]", "torch==2.13.0")
    session.run("python", "-m", "benchmarks.accuracy")
    session.run("pytest", "-m", "live", "tests/live/test_torch.py")


@nox.session(python="3.11")
def keras3(session: nox.Session) -> None:
    """The comparison with Keras 3, which runs on JAX."""
    session.install("-e", ".[test]", "keras>=3.15")
    session.run("pytest", "-m", "live", "tests/live/test_keras3.py", env={"KERAS_BACKEND": "jax"})
