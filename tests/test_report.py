import base64
import hashlib
import html.parser
import io
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import report_factory
import run_factory
from PIL import Image

import dpa_jax
from dpa_jax import errors, losses
from dpa_jax.data import ImageSet
from dpa_jax.reporting import cases, charts, evaluation_files, page, pictures, run_files

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>.png"


class Page(html.parser.HTMLParser):
    """Collects a page's elements with their attributes and the text in each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        self.stack.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.stack:
            self.stack[-1][2].append(data)
        if not self.stack or self.stack[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag):
        return [
            (found, "".join(text)) for name, found, text in self.elements if name == tag
        ]

    def script(self, id):
        return next(text for found, text in self.all("script") if found.get("id") == id)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with an evaluation of 40 cases, one of which has a hostile name."""
    folder = report_factory.write_run(tmp_path_factory.mktemp("report") / "run")
    names = [HOSTILE, *(f"films/{i:05d}.png" for i in range(1, 40))]
    report_factory.write_evaluation(folder / "evaluations" / "test", names=names)
    return folder


def read(folder, name="test"):
    out = folder / "page.html"
    page.write(folder, folder / "evaluations" / name, out)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def whole(run):
    return read(run)


def test_the_page_asks_for_no_other_file(whole):
    for tag, found, _ in whole.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img"), tag
        assert "src" not in found and "style" not in found
        assert found.get("href", "#").startswith("#")
        assert not [name for name in found if name.startswith("on")]


def test_the_policy_allows_the_pages_own_script_and_style_alone(whole):
    (policy,) = [f["content"] for f, _ in whole.all("meta") if "http-equiv" in f]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    programs = [text for found, text in whole.all("script") if "type" not in found]
    styles = [text for _, text in whole.all("style")]
    for kind, texts in (("script-src", programs), ("style-src", styles)):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["form-action"] == "'none'"


def test_names_of_strangers_are_text(run, whole):
    assert len(whole.all("script")) == 3
    assert HOSTILE in json.loads(whole.script("data"))["path"]
    values = json.loads((run / "config.json").read_text())
    values["data"]["train"] = HOSTILE
    hostile = run.parent / "<b>"
    report_factory.write_run(hostile)
    (hostile / "config.json").write_text(json.dumps(values))
    page.write(hostile, None, hostile / "page.html")
    found = Page((hostile / "page.html").read_text())
    assert len(found.all("script")) == 1 and not found.all("b")
    assert HOSTILE in found.text and ("<b>" in [text for _, text in found.all("h1")])


def test_the_page_says_what_metrics_json_says(run, whole):
    found = json.loads((run / "evaluations" / "test" / "metrics.json").read_text())
    low, high = found["roc_auc_interval"]
    assert f"{found['roc_auc']:.3f}" in whole.text
    assert f"95%: {low:.3f} to {high:.3f}" in whole.text
    assert "20 normal and 20 abnormal images" in whole.text
    assert "mean intensity" in whole.text and "0.610" in whole.text
    assert "da7a" * 16 in whole.text and "3e19" * 16 in whole.text
    assert "Random weights" in whole.text


def test_the_calibration_is_what_was_promised_beside_what_was_seen(run, whole):
    found = json.loads((run / "evaluations" / "test" / "metrics.json").read_text())
    rate = found["calibration"]["false_positive_rate"]
    assert "at most 10% are promised" in whole.text
    assert f"Here {100 * rate:.3g}% were" in whole.text
    assert "threshold 0.25" in whole.text


def test_a_promise_that_is_not_kept_is_a_warning(run, tmp_path):
    path = run / "evaluations" / "test" / "metrics.json"
    folder = tmp_path / "run"
    report_factory.write_run(folder)
    report_factory.write_evaluation(folder / "evaluations" / "test")
    found = json.loads(path.read_text())
    for low, warned in ((0.12, True), (0.08, False)):
        found["calibration"]["false_positive_rate_interval"] = [low, 0.5]
        (folder / "evaluations" / "test" / "metrics.json").write_text(json.dumps(found))
        assert ("more than was promised" in read(folder).text) == warned


def test_rates_that_are_not_known_are_called_so(tmp_path):
    report_factory.write_run(tmp_path)
    folder = tmp_path / "evaluations" / "test"
    report_factory.write_evaluation(folder)
    found = json.loads((folder / "metrics.json").read_text())
    rates = ("false_positive_rate", "false_positive_rate_interval")
    found["calibration"] |= dict.fromkeys(rates) | {"units": "patient"}
    (folder / "metrics.json").write_text(json.dumps(found))
    text = read(tmp_path).text
    assert "unknown promised: 0.1" in text and "How many were is not known" in text
    assert "Of normal groups (patient) like those" in text
    assert "A decision is of all images of a group (patient)" in text


def test_without_a_calibration_nothing_is_decided(tmp_path):
    report_factory.write_run(tmp_path, calibrated=False)
    report_factory.write_evaluation(tmp_path / "evaluations" / "test", calibrated=False)
    found = read(tmp_path)
    names = {attributes.get("name") for attributes, _ in found.all("select")}
    assert names == {"label", "sort", "view"}
    assert "dpa-jax calibrate" in found.text


def test_a_threshold_of_another_calibration_is_not_drawn(run, tmp_path):
    report_factory.write_run(tmp_path)
    report_factory.write_evaluation(tmp_path / "evaluations" / "test")
    values = json.loads((tmp_path / "calibration.json").read_text())
    for change in ({"alpha": 0.01}, {"trained": 2600}):
        (tmp_path / "calibration.json").write_text(json.dumps(values | change))
        assert "threshold 0.25" not in read(tmp_path).text


def test_a_run_that_was_not_evaluated_has_a_page_too(tmp_path):
    report_factory.write_run(tmp_path)
    code, out, err = run_factory.call("report", "--workdir", tmp_path)
    assert code == 0, err
    assert out == f"report in {tmp_path}/report.html: open it in a browser\n"
    found = Page((tmp_path / "report.html").read_text())
    assert "was not evaluated yet" in found.text
    assert "0.1154 at the end" in found.text  # 0.1 + 20 / 1300


# --- the cases ---


def test_all_cases_are_kept_up_to_the_limit():
    assert cases.select(np.zeros(7), 7).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_of_too_many_the_highest_the_lowest_and_some_others_are_kept():
    scores = np.random.default_rng(0).permutation(1000) / 1000
    kept = cases.select(scores, 100)
    assert len(kept) == 100 and (np.diff(kept) > 0).all()
    ranked = np.sort(scores[kept])
    np.testing.assert_array_equal(ranked[:20], np.arange(20) / 1000)
    np.testing.assert_array_equal(ranked[-40:], np.arange(960, 1000) / 1000)
    others = ranked[20:-40]
    assert others.min() >= 0.02 and others.max() < 0.96
    assert 0.3 < others.mean() < 0.7  # drawn from all of them
    np.testing.assert_array_equal(kept, cases.select(scores, 100))


def test_shares_are_of_the_weighted_terms():
    loss = losses.Loss(layers=(("a", 1.0), ("b", 3.0)), image_weight=2.0)
    found = {"layers.a": [1.0, 0.0], "layers.b": [1.0, 1.0], "layers.image": [2.0, 0.5]}
    found = {name: np.float32(values) for name, values in found.items()}
    expected = [[1 / 8, 3 / 8, 4 / 8], [0, 3 / 4, 1 / 4]]
    np.testing.assert_allclose(cases.shares(loss, found), expected, rtol=1e-6)


def test_a_loss_without_layers_has_no_shares():
    loss = losses.Loss(relative_perceptual=0.0, l1=1.0)
    assert cases.shares(loss, {"map": np.zeros((3, 8, 8))}).shape == (3, 0)


def test_what_is_kept_is_what_the_run_made_of_the_images(trained):
    scorer = dpa_jax.load(trained)
    images = ImageSet(run_factory.images(6)[..., None], list("abcdef"))
    scores = scorer(images.images)
    found = cases.compute(scorer, images, scores)
    np.testing.assert_array_equal(found.image, images.images)
    np.testing.assert_array_equal(found.score, scores)
    made = scorer.reconstruct(images.images)
    seen = found.reconstruction / 127.5 - 1
    np.testing.assert_allclose(seen, made.clip(-1, 1), atol=0.5 / 127.5 + 1e-4)
    # the mean of a map is about the score
    np.testing.assert_allclose(found.map.mean((1, 2)), scores, rtol=0.02)
    assert found.layers.tolist() == ["r12"] and (found.share == 1).all()


def damage(path, **changes):
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{n: a for n, a in arrays.items() if a is not None})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"map": None}, "damaged, .* is missing or of another shape"),
        ({"share": np.zeros((3, 2), "f")}, "damaged, share is missing"),
        ({"image": np.zeros((40, 16, 16, 1), "f")}, "damaged, image is missing"),
        ({"score": np.zeros(40, "f")}, "of different evaluations"),
        ({"row": np.arange(40) + 1}, "of different evaluations"),
        ({"row": np.array([{}] * 40)}, "cannot read .*cases.npz"),
    ],
)
def test_damaged_cases_are_named(tmp_path, changes, message):
    report_factory.write_run(tmp_path)
    folder = tmp_path / "evaluations" / "test"
    report_factory.write_evaluation(folder)
    damage(folder / "cases.npz", **changes)
    with pytest.raises(errors.DpaError, match=f"cases.npz.*{message}|{message}"):
        read(tmp_path)


def test_nothing_in_a_case_is_unpickled(tmp_path):
    class Program:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "cases.npz", np.array([Program()]))
    with pytest.raises(errors.DpaError, match="cases.npz"):
        cases.read(tmp_path / "cases.npz")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Program()))  # what would have happened
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"roc_auc": "<b>"}, "roc_auc is not a number"),
        ({"roc_auc_interval": ["a", "b"]}, "damaged, a is not a number"),
        ({"roc_auc_interval": [0.1]}, "damaged, not two numbers"),
        ({"shortcuts": {"age": "x"}}, "damaged, age is not a number"),
        ({"by_view": {"PA": {"normal": 3}}}, "damaged, abnormal is missing"),
        ({"calibration": {"alpha": 0.1}}, "damaged, units is missing"),
        ({"normal": 19}, "of different evaluations: 20 normal and 20 abnormal"),
    ],
)
def test_damaged_metrics_are_named(run, tmp_path, change, message):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    for name in ("metrics.json", "scores.csv"):
        text = (run / "evaluations" / "test" / name).read_text()
        (folder / name).write_text(text)
    found = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(found | change))
    with pytest.raises(errors.DpaError, match=f"metrics.json.*{message}"):
        evaluation_files.read(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": "x"}, "alpha is not a number"),
        ({"map_range": [1]}, "not two numbers"),
        ({"strata": {"all": {}}}, "threshold is missing"),
        ({"data": {"location": "x"}}, "sha256 is missing"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path, change, message):
    report_factory.write_run(tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(errors.DpaError, match=f"calibration.json: damaged, {message}"):
        run_files.read(tmp_path)


def test_half_a_row_of_metrics_is_left_out_only_at_the_end(tmp_path):
    report_factory.write_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    rows = run_files.read(tmp_path).training
    whole = path.read_text()
    path.write_text(whole + '{"step": 13')
    assert run_files.read(tmp_path).training == rows
    path.write_text('{"step": 13\n' + whole)
    with pytest.raises(errors.DpaError, match="metrics.jsonl, line 1: damaged"):
        run_files.read(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "damaged"),
        ("path,score\na.png\n", "damaged"),
        ("path,label,score\na.png,normal,x\n", "not all of score are numbers"),
        ("path,label,score\na.png,odd,1\n", "labels are normal or abnormal"),
    ],
)
def test_damaged_scores_are_named(run, tmp_path, text, message):
    source = run / "evaluations" / "test" / "metrics.json"
    (tmp_path / "metrics.json").write_text(source.read_text())
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(errors.DpaError, match=f"scores.csv: .*{message}"):
        evaluation_files.read(tmp_path)


# --- which evaluation ---


def test_of_several_evaluations_the_newest_is_shown_or_the_one_that_is_named(tmp_path):
    report_factory.write_run(tmp_path)
    for name in ("nih", "own"):
        report_factory.write_evaluation(tmp_path / "evaluations" / name, count=6)
    os.utime(tmp_path / "evaluations" / "own" / "metrics.json", ns=(0, 0))
    code, out, _ = run_factory.call("report", "--workdir", tmp_path)
    assert code == 0 and f"{tmp_path}/evaluations/nih/report.html" in out
    code, _, err = run_factory.call("report", "--workdir", tmp_path, "--evaluation=cxr")
    assert code == 2 and "has no evaluation cxr; it has nih, own" in err
    code, _, err = run_factory.call("report", "--workdir", tmp_path, "--evaluation=own")
    assert code == 0 and (tmp_path / "evaluations" / "own" / "report.html").exists()
    elsewhere = tmp_path / "evaluations" / "nih"
    assert evaluation_files.choose(tmp_path, str(elsewhere)) == elsewhere


def test_a_file_given_as_out_is_not_replaced_unasked(run, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("of before")
    command = ("report", "--workdir", run, "--out", out)
    code, _, err = run_factory.call(*command)
    assert code == 1 and f"{out} is already there" in err
    assert out.read_text() == "of before"
    assert run_factory.call(*command, "--overwrite")[0] == 0
    assert out.read_text().startswith("<!DOCTYPE html>")


def test_a_page_that_goes_to_a_stream_stands_there_alone(run, capfd):
    command = ("report", "--workdir", run, "--out", "/dev/stdout")
    code, said, err = run_factory.call(*command)
    assert code == 0 and said == "" and "report in /dev/stdout" in err
    assert capfd.readouterr().out.startswith("<!DOCTYPE html>")


def test_several_runs_are_told_apart(run, tmp_path):
    values = json.loads((run / "config.json").read_text())
    values["population"]["seeds"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(errors.DpaError, match=r"holds 3 runs; give one .*members/0"):
        run_files.read(tmp_path)


# --- pictures and plots ---


def made(count=8, size=32, channels=1):
    image = run_factory.images(count, size)[..., None].repeat(channels, -1)
    heat = np.linspace(0, 1, size * size, dtype=np.float16).reshape(size, size)
    return cases.Cases(
        row=np.arange(count),
        score=np.zeros(count, np.float32),
        image=image,
        reconstruction=255 - image,
        map=np.tile(heat, (count, 1, 1)),
        layers=np.array(["a"]),
        share=np.ones((count, 1), np.float32),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_image_reconstruction_and_map(channels):
    given = made(channels=channels)
    found = pictures.encode(given, 0.25, 0.75)
    assert (found.side, found.quality) == (32, 90)
    with Image.open(io.BytesIO(base64.b64decode(found.encoded[3]))) as picture:
        assert picture.size == (96, 32)
        parts = np.split(np.asarray(picture.convert("L"), float), 3, axis=1)
    heat = np.clip((given.map[3].astype(float) - 0.25) / 0.5, 0, 1) * 255
    expected = [given.image[3, ..., 0], given.reconstruction[3, ..., 0], heat]
    for part, values in zip(parts, expected, strict=True):
        assert np.abs(part - values).mean() < 3


def test_pictures_lose_quality_then_size_until_they_fit():
    given = made()
    sizes = {}
    for budget in (10**9, 8 * 900, 8 * 700, 8 * 500):
        found = pictures.encode(given, 0, 1, budget)
        total = sum(len(base64.b64decode(each)) for each in found.encoded)
        sizes[budget] = found.side, found.quality
        assert total <= budget
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert len(set(sizes.values())) >= 3 and sizes[10**9] == (32, 90)


def test_axes_put_values_between_their_ends():
    plot = charts.plot(("x", 0, 10), ("y", -1, 1))
    assert plot.x.at(0) == charts.LEFT
    assert plot.x.at(10) == charts.WIDTH - charts.RIGHT
    assert plot.y.at(0) == (charts.TOP + charts.HEIGHT - charts.BOTTOM) / 2
    assert [text for _, text in plot.x.ticks] == ["0", "2", "4", "6", "8", "10"]
    assert charts.plot(("x", 3, 3), ("y", 0, 0)).x.at(3) == charts.LEFT


def test_long_curves_keep_their_ends():
    plot = charts.plot(("x", 0, 9999), ("y", 0, 1))
    points = plot.points(np.arange(10000), np.linspace(0, 1, 10000)).split()
    assert len(points) <= 602
    assert points[0] == f"{charts.LEFT:.1f},{charts.HEIGHT - charts.BOTTOM:.1f}"
    assert points[-1] == f"{charts.WIDTH - charts.RIGHT:.1f},{charts.TOP:.1f}"
