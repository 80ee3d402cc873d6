"""What several tests need: the parity fixtures' place and a tiny configuration."""

import gc
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
import run_factory

import dpa_jax
from dpa_jax.backbones import vgg19
from dpa_jax.devices import compilation_cache

# Compiling is most of the time of these tests. XLA's own passes stay; LLVM's, which
# change nothing but the speed of what is compiled, are left out, and each program is
# one module: in several, as usual, LLVM takes half as long again.
_FLAGS = ["--xla_backend_optimization_level=0"]
_FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later ones end the process at a flag they lost
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS))

# PyTorch on one thread, of which every worker has its own: several wait for one another
# on a busy machine, and compute meanwhile.
os.environ["OMP_NUM_THREADS"] = "1"

# Tracing makes millions of objects that stay; to look through them takes a tenth of it.
gc.set_threshold(200_000, 50, 100)

# Where a script runs the tests in the background SIGINT is ignored, and would be by the
# processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of fixtures and real data, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the parity fixtures and real images are not at {SHARED.name}/")
    return SHARED


@pytest.fixture(scope="session")
def nih_entries(shared):
    """The real tables of NIH ChestX-ray14, which take seconds to read."""
    from dpa_jax.datasets import nih_metadata

    folder = shared / "data" / "nih_chest_xray14"
    return nih_metadata.read_entries(
        folder / "Data_Entry_2017_v2020.csv.gz", folder / "BBox_List_2017.csv.gz"
    )


@pytest.fixture(scope="session")
def fixture_vgg(shared):
    """The VGG19 weights that the parity fixtures were computed with."""
    import runpy

    state = runpy.run_path(str(shared / "fixtures" / "make_vgg19.py"))["state_dict"]()
    names = iter(vgg19.CONVOLUTIONS)
    weights = {}
    for key in state:
        if key.endswith("weight"):
            kernel = state[key].transpose(2, 3, 1, 0)
            bias = state[key.replace("weight", "bias")]
            weights[next(names)] = {"kernel": kernel, "bias": bias}
    return jax.device_put(weights)


@pytest.fixture(scope="session")
def fixture_statistics(shared):
    """The published feature statistics."""
    from dpa_jax.weights import statistics_files

    return jax.device_put(
        statistics_files.load(str(shared / "fixtures" / "vgg19_feature_stats.npz"))
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps weights and compiled programs apart from those of whoever runs the tests.

    Compiled programs are shared by all tests, in this process and in others, those of
    the other workers among them.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPA_JAX_CACHE", str(folder / "cache"))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        compilation_cache.enable()
        yield


@pytest.fixture
def tiny_config():
    """Two stages and a transition of a few steps each, 8 to 16 pixels."""
    config = run_factory.tiny_config()
    config.model.kind = "residual18"
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a finished run of the tiny configuration; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    config = run_factory.tiny_config()
    config.data.train = run_factory.write_npz(folder / "train.npz")
    config.log_every = 2
    return dpa_jax.train(config, folder / "run", visible=False)


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)
