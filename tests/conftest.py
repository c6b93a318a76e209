import atexit
import collections
import os
import shutil
import tempfile

import hypothesis
import jax
import pytest

import adamx

# The same examples in every run of CI; new ones in each run by hand.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# Eight devices, so that sharding can be tested; everything else runs on the first.
jax.config.update("jax_num_cpu_devices", 8)

# A program is compiled once in a run of the tests, whichever process needs it first. Of the
# processes of a run the first one comes here without a folder, and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="adamx-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items):
    """Mark what is sampled, and check that tests of the kernel are not skipped.

    With ADAMX_TEST_KERNEL=1, as in CI, these fail where they would be.
    """
    counts = collections.Counter()
    for item in items:
        if (marker := item.get_closest_marker("sampled")) is not None:
            function = item.nodeid.partition("[")[0]
            if counts[function] % marker.args[0]:
                item.add_marker(pytest.mark.slow)
            counts[function] += 1
    if os.environ.get("ADAMX_TEST_KERNEL") == "1" and not adamx.native.status():
        reason = adamx.native.status().reason
        raise pytest.UsageError(f"ADAMX_TEST_KERNEL=1, and there is no kernel: {reason}")


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """No dtype is promoted and no rank broadcast but where the code says so.

    Modules that run other packages, which do promote, set `PROMOTES = True`.
    """
    if getattr(request.module, "PROMOTES", False):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
