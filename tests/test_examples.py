"""The examples run as they stand, and their pages show the code that is there."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("render", ROOT / "examples" / "render.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)


def test_an_example_with_devices_of_its_own_runs_in_a_process(tmp_path):
    render.main(str(tmp_path), "many_devices")
    check((tmp_path / "many_devices.md").read_text(), "many_devices")


@pytest.mark.parametrize("name", [n for n in render.NAMES if n != "many_devices"])
def test_an_example_runs_and_its_page_is_current(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(render.FOLDER)
    check(render.run(name), name)


def check(page, name):
    shown = (ROOT / "docs" / "examples" / f"{name}.md").read_text()
    assert "prints" in page
    assert code_of(shown) == code_of(page)


def test_every_example_has_its_page_and_is_run():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = {path.stem for path in (ROOT / "docs" / "examples").glob("*.md")}
    assert scripts - {"mine", "render"} == pages == set(render.NAMES)
