"""The pages name commands, fields and files that exist."""

import pathlib
import re
import shlex

import pytest

from dpa_jax.cli import parsing
from dpa_jax.config import default_config, flat

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def commands():
    """Yields each command of this program in the pages' blocks, with its page."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", "").splitlines():
                words = shlex.split(line, comments=True)
                programs = [i for i, w in enumerate(words) if w.endswith("dpa-jax")]
                for start in programs:
                    yield page.name, words[start + 1 :]


@pytest.mark.parametrize(
    "page, words", list(commands()), ids=lambda value: str(value)[:60]
)
def test_a_command_is_one_that_can_be_given(page, words):
    options, fields = parsing.parser().parse_known_args(words)
    assert options.verb
    known = flat(default_config())
    for field in fields:
        if not field.startswith("--search."):
            assert re.fullmatch(r"--config\.(.+?)=.*", field)[1] in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_shows_every_verb():
    (action,) = (a for a in parsing.parser()._actions if a.dest == "verb")
    text = (ROOT / "README.md").read_text()
    for verb in action.choices:
        assert f"dpa-jax {verb}" in text or f"- `{verb}`" in text
