"""The machine as a value: its memory, its compiler's options."""

import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpa_jax import errors
from dpa_jax.devices import compilation_cache, platform
from dpa_jax.devices.platform import Platform
from dpa_jax.ops import activations, compute
from dpa_jax.ops.compute import Compute

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_this_machine():
    here = Platform.here()
    assert here.backend == "cpu" and here.is_main
    assert here.devices == here.local_devices == tuple(jax.devices())
    assert here.memory == here.host_memory <= PHYSICAL


def test_kernels_are_used_as_process_0_says_or_the_run_ends(monkeypatch):
    device = jax.devices()[0]  # a CPU, which has none

    def group(says):
        return types.SimpleNamespace(decide=lambda make: says)

    assert not platform._has_kernels(device, group(False))
    with pytest.raises(errors.DpaError, match="right on a device of process 0 and not"):
        platform._has_kernels(device, group(True))
    monkeypatch.setattr(platform.kernel_check, "run_on", lambda device: True)
    assert not platform._has_kernels(device, group(False))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_control_groups_memory_is_the_machines(tmp_path):
    assert platform.host_memory(tmp_path, tmp_path / "none") == PHYSICAL


@pytest.mark.parametrize("place", ["", "jobs", "jobs/7"])
def test_a_limit_of_version_2_holds_for_all_below_it(tmp_path, place):
    own = write(tmp_path / "own", "0::/jobs/7\n")
    write(tmp_path / "v2" / place / "memory.max", "1048576\n")
    assert platform.host_memory(tmp_path / "v2", own) == 1 << 20


def test_a_limit_of_version_1_holds(tmp_path):
    own = write(tmp_path / "own", "5:cpu:/x\n4:memory:/jobs/7\n0::/\n")
    write(tmp_path / "v1" / "memory" / "jobs" / "memory.limit_in_bytes", "2097152\n")
    assert platform.host_memory(tmp_path / "v1", own) == 2 << 20


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n"])
def test_no_limit_is_the_machines_memory(tmp_path, text):
    own = write(tmp_path / "own", "0::/\n")
    write(tmp_path / "v2" / "memory.max", text)
    assert platform.host_memory(tmp_path / "v2", own) == PHYSICAL


def test_an_option_that_this_xla_does_not_know_is_left_out_and_named():
    known = {"xla_cpu_enable_fast_min_max": True}
    taken, refused = platform.try_options({**known, "xla_renamed_since": ""})
    assert taken == known and refused == ("xla_renamed_since",)


def test_the_options_of_this_machine_are_taken():
    taken, refused = platform.usable_options("cpu", False)
    assert taken == Platform.here().options
    # which JAX 0.11 has no more
    lost = {"xla_cpu_use_fusion_emitters"} if jax.__version_info__ >= (0, 11) else set()
    assert set(refused) == lost


def test_gpus_that_keep_programs_on_disk_go_without_graphs_of_convolutions():
    assert platform.usable_options("gpu", True) == ({}, ())


def test_programs_of_training_are_kept_on_disk_but_on_gpus_and_why_not_is_known():
    assert compilation_cache.reason_against("cpu") == ""
    assert compilation_cache.reason_against("tpu") == ""
    assert "cuDNN (status 5003" in compilation_cache.reason_against("gpu")


def test_precision_follows_the_backend_unless_it_is_given():
    assert compute.resolve("auto", "cpu") == "float32"
    assert compute.resolve("auto", "tpu") == "bfloat16"
    assert compute.resolve("float32", "gpu") == "float32"
    assert Compute("bfloat16").dtype == jnp.bfloat16
    assert Compute("bfloat16").wide == Compute("float32").dtype == jnp.float32


# --- activations


X = np.array([-2.0, -0.5, 0.0, 0.5, 3.0], np.float32)


@pytest.mark.parametrize(
    ("function", "slopes"),
    [
        (activations.relu, [0, 0, 0, 1, 1]),
        (activations.leaky_relu, [0.2, 0.2, 0.2, 1, 1]),
    ],
)
def test_activations_have_derivatives_of_every_kind(function, slopes):
    slopes = np.float32(slopes)
    value, tangent = jax.jvp(function, (X,), (np.ones_like(X),))
    np.testing.assert_allclose(value, X * slopes)
    np.testing.assert_array_equal(tangent, slopes)
    for derive in (jax.jacfwd, jax.jacrev):
        np.testing.assert_array_equal(derive(function)(X), np.diag(slopes))

    def cubed(x):
        return (function(x) ** 3).sum()

    expected = np.diag(6 * X * slopes**3)  # of (slope x)^3
    np.testing.assert_allclose(jax.hessian(cubed)(X), expected, rtol=1e-6, atol=1e-6)
