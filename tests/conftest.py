"""Every test runs under strict promotion, on eight virtual devices, with warnings as errors."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers share the cores: BLAS threads that wait for each other take forty times as long as one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", os.environ.get("JOPT_TEST_X64") == "1")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; run with -m slow")


SLOW = frozenset(Path(__file__).with_name("slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What was measured to take long is slow too: see `slowest.py`."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker("slow")


@pytest.fixture
def x64():
    """The test runs in double precision."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """What a module compiled is dropped after it; else a worker comes to hold several gigabytes."""
    yield
    jax.clear_caches()
