"""A short run of the attacks and of the soak; what is lost or grows is noticed."""

import json
import random

import jax
import numpy as np
import pytest

from benchmarks import chaos, chaos_attacks, chaos_target, soak
from dpa_jax.storage import checkpoints

STEPS = chaos_target.STEPS


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return chaos_target.Target(tmp_path_factory.mktemp("chaos"))


def test_attacks_are_survived(target):
    # a process of its own, to be killed, takes seconds to start
    for number, name in enumerate(["flip_workdir", "cut_data_set", "file_size"]):
        outcome, what = chaos.attempt(name, target, random.Random(number))
        assert outcome in ("same_bits", "refused"), what


def test_other_parameters_are_a_loss(target, tmp_path):
    whole = checkpoints.restore(target.whole, STEPS)
    moved = jax.tree.map(lambda leaf: leaf + np.ones((), leaf.dtype), whole.arrays)
    with checkpoints.Checkpoints(tmp_path) as kept:
        kept.save(STEPS, moved, whole.notes)
    with pytest.raises(chaos_target.Lost, match="other parameters"):
        target.compare(tmp_path)


def test_a_loss_is_reported_with_its_seed_and_fails(monkeypatch, tmp_path, capsys):
    def lose(target, folder, chance):
        raise chaos_target.Lost("it is gone")

    monkeypatch.setattr(chaos, "Target", lambda folder: chaos_target.Target)
    monkeypatch.setattr(chaos_target.Target, "folder", tmp_path, raising=False)
    monkeypatch.setitem(chaos_attacks.ATTACKS, "kill", lose)
    out = tmp_path / "chaos.json"
    arguments = ["--attacks=2", "--only=kill", "--seed=5", f"--out={out}"]
    assert chaos.main(arguments) == 1
    assert "attack 1 of seed 5, kill: it is gone" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["tried"], row["same_bits"], row["lost"]) == (2, 0, 2)


def test_growth_is_found(monkeypatch, capsys):
    def leaking(folder, config):
        kept = []
        return lambda: kept.append(np.ones(2**26, np.uint8))

    monkeypatch.setattr(soak, "MEBIBYTES", 8)
    monkeypatch.setattr(soak.gc, "collect", lambda: 0)  # of all that the tests hold
    for name in ("_training", "_scoring", "_tuning"):
        monkeypatch.setattr(soak, name, leaking)
    assert soak.main(["--minutes=0"]) == 1
    assert "the process grew: training by +64 MiB" in capsys.readouterr().err
