"""Four fake devices, 64-bit floats, no silent broadcasting: set before JAX starts, for every test.

No persistent compilation cache: a stale or foreign entry would decide a test, and compile times would not be real.
"""

import os

# Appended, so that a caller's own flags hold too; XLA reads the variable once, when its first backend starts.
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4").strip()
os.environ.setdefault("MPLBACKEND", "Agg")  # figures without a screen

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What one file compiled no other file needs, and it is mapped memory: the kernel allows 65 530 maps a process, and
    LLVM crashes at the next one."""
    yield
    jax.clear_caches()
