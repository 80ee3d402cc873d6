import math
import pathlib

import numpy as np
import pytest
import run_factory

from dpa_jax import config as config_lib
from dpa_jax import config_files, errors
from dpa_jax.tuning import search as search_lib
from dpa_jax.tuning import space

RATE = {"field": "optimizer.learning_rate", "low": 1e-4, "high": 1e-2, "log": True}
WIDTHS = {
    "choices": {
        f"w{n}": {
            "model": {
                "latent_channels": n,
                "encoder_channels": (n, n),
                "decoder_channels": (n, n),
            }
        }
        for n in (4, 8)
    }
}


@pytest.fixture
def config():
    return run_factory.quick_config()


def make(**entries):
    search = search_lib.default_search()
    search.anomalies.source = "anomalies"
    search.space = entries
    return search


def parameters(config, **entries):
    return search_lib.parameters(make(**entries), config)


def test_grid_has_every_combination_once_with_the_rate_fastest(config):
    search = make(rate={**RATE, "points": 3}, width=WIDTHS)
    search.sampler = "grid"
    search = search_lib.validate(search, config)
    plan = search_lib.planned(search, search_lib.parameters(search, config))
    assert plan == [
        {"width": width, "rate": rate}
        for width in ("w4", "w8")
        for rate in (1e-4, 1e-3, 1e-2)
    ]


def test_random_trials_are_distinct_and_go_on_when_there_are_more(config):
    search = make(batch={"field": "batch_size", "low": 1, "high": 8})
    search.sampler, search.trials = "random", 8
    search = search_lib.validate(search, config)
    found = search_lib.parameters(search, config)
    all_of_them = search_lib.planned(search, found)
    assert sorted(v["batch"] for v in all_of_them) == list(range(1, 9))
    search.trials = 3
    assert search_lib.planned(search, found) == all_of_them[:3]
    search.trials, search.seed = 8, 1
    assert search_lib.planned(search, found) != all_of_them


def test_more_random_trials_than_combinations_are_refused(config):
    search = make(batch={"field": "batch_size", "values": (4, 8)})
    search.sampler, search.trials = "random", 3
    with pytest.raises(errors.UsageError, match="has 2 combinations.*sampler=grid"):
        search_lib.validate(search, config)


def test_draws_of_a_range_are_even_by_the_logarithm(config):
    (rate,) = parameters(config, rate=RATE)
    rng = np.random.default_rng(0)
    values = [rate.draw(rng) for _ in range(2000)]
    assert min(values) >= 1e-4 and max(values) <= 1e-2
    shares = np.histogram(np.log10(values), 4, (-4, -2))[0] / 2000
    # five standard deviations of a share of a quarter
    np.testing.assert_allclose(shares, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / 2000))


def test_whole_numbers_of_a_range_are_equally_likely_to_its_ends(config):
    (batch,) = parameters(config, b={"field": "batch_size", "low": 4, "high": 7})
    rng = np.random.default_rng(0)
    values = [batch.draw(rng) for _ in range(2000)]
    assert all(type(value) is int for value in values)
    shares = np.bincount(values, minlength=8)[4:] / 2000
    np.testing.assert_allclose(shares, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / 2000))


def test_values_of_a_trial_become_a_config(config):
    found = parameters(
        config,
        rate=RATE,
        width=WIDTHS,
        equalize={"field": "data.equalize", "values": (False, True)},
    )
    values = {"rate": 2e-3, "width": "w8", "equalize": True}
    applied = search_lib.applied(config, found, values)
    before = config_lib.flat(config)
    assert {
        name: value
        for name, value in config_lib.flat(applied).items()
        if value != before[name]
    } == {
        "optimizer.learning_rate": 2e-3,
        "data.equalize": True,
        "model.latent_channels": 8,
        "model.encoder_channels": (8, 8),
        "model.decoder_channels": (8, 8),
    }


def test_lists_of_channels_are_named_by_what_they_hold(config):
    (width,) = parameters(
        config, c={"field": "model.encoder_channels", "values": ((4, 4), (8, 8))}
    )
    assert width.ends() == ["4,4", "8,8"]
    assert width.overrides("8,8") == {"model.encoder_channels": (8, 8)}


def test_config_of_a_fold_has_the_protocol_of_the_search(config):
    search = make(rate=RATE)
    search.folds, search.seed = 4, 7
    search.early_stopping.update({"every": 10, "patience": 1, "min_delta": 0.5})
    found = search_lib.parameters(search, config)
    one = search_lib.fold_config(config, search, found, {"rate": 1e-3}, 2)
    assert (one.data.folds, one.data.fold, one.data.seed) == (4, 2, 7)
    assert one.early_stopping.to_dict() == search.early_stopping.to_dict()
    assert config.data.folds == 0


def test_shapes_are_equal_where_only_rate_and_seed_differ(config):
    other = config_lib.updated(config, {"optimizer.learning_rate": 1e-2, "seed": 9}, "")
    assert search_lib.shape(other) == search_lib.shape(config)
    other.batch_size = 4
    assert search_lib.shape(other) != search_lib.shape(config)


def test_search_comes_back_from_its_json_and_plans_the_same(config):
    search = make(rate={**RATE, "points": 2}, width=WIDTHS)
    search.sampler = "grid"
    search = search_lib.validate(search, config)
    text = config_files.to_json(search)
    again = search_lib.validate(search_lib.from_json(text, "x"), config)
    assert config_files.to_json(again) == text
    for one in (search, again):
        one.sampler = "random"
    plans = [
        search_lib.planned(one, search_lib.parameters(one, config))
        for one in (search, again)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "entry, message",
    [
        ({**RATE, "field": "optimizer.learning_rat"}, "mean optimizer.learning_rate"),
        ({**RATE, "lo": 1}, "space.it has lo, which means nothing; did you mean low"),
        ({"field": "batch_size", "low": 1.5, "high": 8}, "low is 1.5; it takes int"),
        ({"field": "batch_size", "low": 8, "high": 8}, "low must be below high"),
        ({**RATE, "low": 0.0}, "and above 0"),
        ({"field": "perceptual.layers", "low": 1, "high": 2}, "is not a number"),
        ({"field": "batch_size"}, "takes field with low and high"),
        ({"field": "batch_size", "values": (8,)}, "no two values"),
        ({"field": "batch_size", "values": 8}, "takes a tuple"),
        ({"field": "batch_sise", "values": (4, 8)}, "did you mean batch_size"),
        ({"field": "batch_size", "values": (4, "8")}, "batch_size is int, not str"),
        ({"field": "batch_size", "values": (4, 0)}, "with it 0: batch_size is 0"),
        ({"choices": {"a": {"modell": {"kind": "x"}}, "b": {"seed": 1}}}, "modell"),
        ({"choices": {"a": 1, "b": 2}}, "takes fields with their values"),
        ({"field": "data.seed", "values": (1, 2)}, "the same for all trials"),
        ({"field": "data.train", "values": ("a", "b")}, "the same for all trials"),
        (3, "it takes field, low and high"),
    ],
)
def test_faulty_entries_are_refused(config, entry, message):
    with pytest.raises(errors.UsageError, match=message):
        search_lib.validate(make(it=entry), config)


def test_two_entries_may_not_set_the_same_field(config):
    with pytest.raises(errors.UsageError, match="space.one sets batch_size"):
        parameters(
            config,
            one={"field": "batch_size", "values": (4, 8)},
            two={"field": "batch_size", "low": 4, "high": 8},
        )


def test_corner_that_cannot_be_trained_is_refused_with_its_values(config):
    width = {"field": "model.encoder_channels", "values": ((4, 4), (4, 4, 4))}
    with pytest.raises(errors.UsageError, match="with width 4,4,4, rate 0.0001: model"):
        search_lib.validate(make(rate=RATE, width=width), config)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("sampler", "gird", "may be tpe, random, grid"),
        ("pruner", "mean", "may be median, none"),
        ("trials", 0, "at least 1"),
        ("folds", 1, "search.folds is 1; it must be at least 2"),
        ("retries", -1, "at least 0"),
        ("trails", 3, "did you mean trials"),
        ("space", {}, "empty space"),
    ],
)
def test_faulty_searches_are_refused(config, name, value, message):
    search = make(rate=RATE)
    search[name] = value
    with pytest.raises(errors.UsageError, match=message):
        search_lib.validate(search, config)


def test_grid_of_a_range_needs_points(config):
    search = make(rate=RATE)
    search.sampler = "grid"
    with pytest.raises(errors.UsageError, match="space.rate has no points"):
        search_lib.validate(search, config)


@pytest.mark.parametrize(
    "name, value", [("data.folds", 3), ("data.seed", 1), ("population.seeds", 2)]
)
def test_base_config_leaves_to_the_study_what_it_sets(config, name, value):
    config = config_lib.updated(config, {name: value}, "")
    with pytest.raises(errors.UsageError, match=f"{name} is {value}, but a study sets"):
        search_lib.validate(make(rate=RATE), config)


def test_without_anomalies_losses_must_be_comparable(config):
    weights = {"field": "loss.l1", "values": (1.0, 2.0)}
    search_lib.validate(make(weight=weights), config)
    search = make(weight=weights)
    search.anomalies.source = ""
    with pytest.raises(errors.UsageError, match=r"loss.l1 \(1.0 in weight 1, 2.0 in"):
        search_lib.validate(search, config)


def test_flags_set_fields_of_a_search_and_suggest_names():
    search = make(rate=RATE)
    found = config_lib.with_flags(
        search, ["--search.folds=5", "--search.space.rate.low=0.002"], "search"
    )
    assert (found.folds, found.space.rate.low) == (5, 0.002)
    with pytest.raises(errors.UsageError, match="folts.*did you mean folds"):
        config_lib.with_flags(search, ["--search.folts=5"], "search")


def test_files_other_than_searches_are_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="a search is a .py file"):
        search_lib.load("configs/search/folder.yaml")
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(errors.UsageError, match="s.json does not hold a search"):
        search_lib.load(str(tmp_path / "s.json"))


SHIPPED = {
    "folder.py": ["folder.py"],
    "folder.py:32": ["folder.py:32"],
    "nih.py": ["nih.py:subset,wo_pg", "nih.py:pa,wo_pg"],
    "nih.py:ap,pg": ["nih.py:ap,pg"],
    "camelyon16.py": ["camelyon16.py:wo_pg"],
    "camelyon16.py:pg": ["camelyon16.py:pg"],
}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("sampler", search_lib.SAMPLERS)
def test_shipped_searches_fit_their_configs(name, sampler):
    search = search_lib.load(f"configs/search/{name}")
    search.sampler = sampler
    search.anomalies.source = search.anomalies.source or "anomalies"
    for base in SHIPPED[name]:
        base = config_files.load(f"configs/{base}")
        found = search_lib.validate(search, base)
        assert search_lib.planned(found, search_lib.parameters(found, base))


def test_every_shipped_search_is_checked_here():
    folder = pathlib.Path(__file__).parents[1] / "configs" / "search"
    assert {path.name for path in folder.glob("*.py")} == {
        name.partition(":")[0] for name in SHIPPED
    }


@pytest.mark.parametrize("name", ["folder.py:16", "nih.py:nih", "camelyon16.py:x"])
def test_shipped_searches_refuse_other_arguments(name):
    with pytest.raises(errors.UsageError, match=name.partition(":")[0]):
        search_lib.load(f"configs/search/{name}")


def test_grid_of_whole_numbers_has_each_once(config):
    entry = {"field": "batch_size", "low": 1, "high": 3, "points": 9}
    (batch,) = space.read({"batch": entry}, config)
    assert batch.grid() == [1, 2, 3]
