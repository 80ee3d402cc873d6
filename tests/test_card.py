import dataclasses
import json
import re

import pytest
import report_factory
import run_factory
import yaml

from dpa_jax import errors
from dpa_jax.reporting import card, evaluation_files, run_files

TEXTS = {
    "intended_use": "To sort films for *reading*.",
    "out_of_scope": "To diagnose.",
    "data": "Films of one hospital.",
    "license": "apache-2.0",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir that was calibrated and evaluated."""
    folder = report_factory.write_run(tmp_path_factory.mktemp("card") / "run")
    report_factory.write_evaluation(folder / "evaluations" / "test")
    return folder


def flags(**changes):
    texts = {**TEXTS, **changes}
    return [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]


def written(folder, *arguments):
    """Writes a card; returns its front matter and its sections by title."""
    out = folder / "card.md"
    code, said, err = run_factory.call(
        *("card", "--workdir", folder, "--out", out, "--overwrite"),
        *(arguments or flags()),
    )
    assert (code, said) == (0, f"model card in {out}\n"), err
    _, front, body = out.read_text().split("---\n", 2)
    _, *parts = re.split(r"^## (.+)$", body, flags=re.MULTILINE)
    titles, texts = parts[::2], [text.strip() for text in parts[1::2]]
    return yaml.safe_load(front), dict(zip(titles, texts, strict=True))


def metrics(folder):
    return json.loads((folder / "evaluations" / "test" / "metrics.json").read_text())


def test_the_front_matter_is_that_of_a_model_card(run):
    front, _ = written(run)
    assert front["license"] == "apache-2.0" and front["library_name"] == "dpa-jax"
    assert front["pipeline_tag"] == "image-classification"
    assert "anomaly-detection" in front["tags"]
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == "run"
    assert result["task"]["type"] == "image-classification"
    # the Hub requires both
    assert result["dataset"] == {"type": "custom", "name": "test"}


def test_results_are_those_of_metrics_json(run):
    front, _ = written(run)
    found = metrics(run)
    given = front["model-index"][0]["results"][0]["metrics"]
    calibrated = found["calibration"]
    low, high = found["roc_auc_interval"]
    assert [(each["type"], each["value"]) for each in given] == [
        ("roc_auc", found["roc_auc"]),
        ("average_precision", found["average_precision"]),
        ("false_positive_rate", calibrated["false_positive_rate"]),
        ("true_positive_rate", calibrated["true_positive_rate"]),
    ]
    assert f"{low:.3f} to {high:.3f}" in given[0]["name"]


def test_no_section_is_empty_and_each_says_what_is_known(run):
    _, sections = written(run)
    found = metrics(run)
    assert all(sections.values())
    assert sections["Intended use"] == TEXTS["intended_use"]
    assert sections["Out-of-scope use"] == TEXTS["out_of_scope"]
    assert sections["Data"].startswith(TEXTS["data"])
    for text in ("600 normal images of films/normal", "da7a" * 16, "ca11" * 16):
        assert text in sections["Data"]
    assert "20 normal and 20 abnormal images (test)" in sections["Data"]
    assert "random:0" in sections["Weights"] and "3e19" * 16 in sections["Weights"]
    low, high = found["roc_auc_interval"]
    row = f"| all | {found['roc_auc']:.4f} | {low:.4f} to {high:.4f} | 20 | 20 |"
    assert row in sections["Evaluation"]
    assert "| mean\\_intensity | 0.6100 |" in sections["Shortcuts"]
    rate = found["calibration"]["false_positive_rate"]
    assert f"| False positive rate, observed | {rate:.4f} |" in sections["Calibration"]
    assert "| Threshold, all | 0.25 |" in sections["Calibration"]
    assert "are random" in sections["Limits"]


def test_rates_that_are_not_known_are_no_results(run):
    evaluation = evaluation_files.read(run / "evaluations" / "test")
    calibrated = dict(evaluation.metrics["calibration"], true_positive_rate=None)
    found = dict(evaluation.metrics, calibration=calibrated)
    evaluation = dataclasses.replace(evaluation, metrics=found)
    text = card.render(run_files.read(run), evaluation, TEXTS)
    assert "| True positive rate, observed | unknown |  |" in text
    assert "type: true_positive_rate" not in text and "value: null" not in text


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    report_factory.write_run(tmp_path)
    (tmp_path / "weights.json").unlink()
    command = ("card", "--workdir", tmp_path, "--intended-use", " ")
    code, _, err = run_factory.call(*command)
    assert code == 2 and err.count("\n") == 1
    for text in ("--intended-use", "--out-of-scope", "--data", "--license"):
        assert text in err
    for text in ("weights.json", "dpa-jax evaluate", "dpa-jax calibrate"):
        assert text in err
    assert not (tmp_path / "README.md").exists()


def test_a_run_that_was_not_calibrated_has_no_card(tmp_path):
    report_factory.write_run(tmp_path, calibrated=False)
    folder = tmp_path / "evaluations" / "test"
    report_factory.write_evaluation(folder, calibrated=False)
    run = run_files.read(tmp_path)
    with pytest.raises(errors.UsageError, match=r"sections: calibration \([^;]*$"):
        card.render(run, evaluation_files.read(folder), TEXTS)


def test_texts_come_from_a_file_and_arguments_go_before_them(run, tmp_path):
    about = tmp_path / "about.yaml"
    about.write_text(yaml.safe_dump({**TEXTS, "data": "Of the file."}))
    front, sections = written(run, "--about", about, "--license=mit")
    assert front["license"] == "mit"
    assert sections["Data"].startswith("Of the file.")


@pytest.mark.parametrize(
    "text, message",
    [
        ("intended: x", "holds intended_use, .*, and nothing else"),
        ("- a", "and nothing else"),
        ("data: 3", "data is not text"),
        ("data: [", "not YAML"),
        ("data: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_is_not_of_texts_is_refused(tmp_path, text, message):
    (tmp_path / "about.yaml").write_text(text)
    with pytest.raises(errors.UsageError, match=f"about.yaml: .*{message}"):
        card.read_texts(tmp_path / "about.yaml")


def test_another_licence_needs_a_name_and_a_link(run):
    command = ("card", "--workdir", run, *flags(license="other"))
    code, _, err = run_factory.call(*command)
    assert code == 2 and "--license-name" in err and "--license-link" in err
    named = ("--license-name=ours-1.0", "--license-link=LICENSE")
    front, _ = written(run, *flags(license="other"), *named)
    assert front["license_name"] == "ours-1.0" and front["license_link"] == "LICENSE"


def test_a_licence_is_an_identifier(run):
    code, _, err = run_factory.call(
        "card", "--workdir", run, *flags(license="Apache 2.0")
    )
    assert code == 2 and "--license=Apache 2.0: an identifier" in err


def test_a_card_is_not_replaced_unasked(run):
    command = ("card", "--workdir", run, *flags())
    assert run_factory.call(*command)[0] == 0
    (run / "README.md").write_text("edited by hand")
    code, _, err = run_factory.call(*command)
    assert code == 1 and "README.md is already there" in err
    assert (run / "README.md").read_text() == "edited by hand"
    assert run_factory.call(*command, "--overwrite")[0] == 0
    assert "edited by hand" not in (run / "README.md").read_text()


def test_names_of_strangers_are_no_markdown(tmp_path):
    folder = tmp_path / "a\n## b <script>|`"
    report_factory.write_run(folder)
    report_factory.write_evaluation(folder / "evaluations" / "test")
    front, sections = written(folder)
    assert front["model-index"][0]["name"] == folder.name
    text = (folder / "card.md").read_text()
    assert r"# a \#\# b \<script\>\|\`" in text
    assert "b <script>" not in sections
