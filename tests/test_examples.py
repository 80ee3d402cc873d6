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


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(own_cache):
    """Examples are processes of their own; programs are compiled once for all."""
    from dpa_jax.devices import compilation_cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilation_cache.folder()))
        yield


@pytest.mark.parametrize("name", render.NAMES)
def test_an_example_runs_and_its_page_is_current(name, tmp_path):
    render.main(str(tmp_path), name)
    page = (tmp_path / f"{name}.md").read_text()
    shown = (ROOT / "docs" / "examples" / f"{name}.md").read_text()
    assert "prints" in page
    assert code_of(shown) == code_of(page)


def test_every_example_has_its_page_and_is_run():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = {path.stem for path in (ROOT / "docs" / "examples").glob("*.md")}
    assert scripts - {"mine", "render"} == pages == set(render.NAMES)
