import os

import hypothesis
import jax
import pytest

# The same examples in every run of CI; new ones in each run by hand.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# Eight devices, so that sharding can be tested; everything else runs on the first.
jax.config.update("jax_num_cpu_devices", 8)


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
