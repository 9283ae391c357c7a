"""Four fake devices, 64-bit floats, no silent broadcasting: set before JAX starts, for every test.

One compilation cache a run, new and shared by its processes: nothing stale or foreign decides a test. Optimisations
are left out, more than half of compiling; `make test-full` has them.
"""

import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")  # figures without a screen
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
FLAGS = ["--xla_force_host_platform_device_count=4"]
# Flags of XLA's own come and go, and one that it does not know ends the process: these are of the pinned version.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# Appended, so that a caller's own flags hold too; XLA reads the variable once, when its first backend starts.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# The first process of a run makes the cache, the others inherit its name.
OURS = "BILEVEL_TESTS_CACHE" not in os.environ
CACHE = os.environ.setdefault("BILEVEL_TESTS_CACHE", tempfile.mkdtemp(prefix="bilevel-tests-") if OURS else "")

MAPS = 20_000  # of memory, after which compiled programs are forgotten

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_sessionfinish():
    if OURS:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def optimised():
    """Programs as users have them, for a test that stands on their last digits."""
    flag = "jax_disable_most_optimizations"
    before = jax.config.values[flag]
    jax.config.update(flag, False)
    jax.clear_caches()
    yield
    jax.config.update(flag, before)
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What one file compiled few others need, and it is mapped memory: the kernel allows 65 530 maps a process, and
    LLVM crashes at the next one."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def forget_sooner(request):
    """Files of hundreds of long checks come there by themselves."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if request.node.get_closest_marker("full") and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


# What takes longest, and has others beside it that ask for nearly the same: in `make test-full`.
LONG = tuple((pathlib.Path(__file__).parent / "long.txt").read_text().split("\n")[:-1])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.rpartition("/")[2].startswith(LONG):
            item.add_marker(pytest.mark.full)
