"""Runs examples and writes each as a page, its output below each part of its code.

python examples/render.py docs/examples           # all
python examples/render.py docs/examples own_images
"""

import ast
import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = (
    "own_images",
    "another_loss",
    "another_backbone",
    "another_network",
    "many_devices",
    "learning_rates",
)


def cells(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Returns an example's introduction and its parts, a line of text and code each."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    introduction = ast.get_docstring(tree) or ""
    rest = "\n".join(source.splitlines()[tree.body[0].end_lineno :])
    first, *others = re.split(r"^# %% ", rest, flags=re.MULTILINE)
    parts = [("", first), *(tuple(part.split("\n", 1)) for part in others)]
    return introduction, [(text, code.strip()) for text, code in parts]


def run(name: str) -> str:
    """Runs an example in the working folder and returns its page."""
    introduction, parts = cells(name)
    page, namespace = [introduction], {"__name__": name}
    for text, code in parts:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, f"{name}.py", "exec"), namespace)
        page += [text] * bool(text) + [f"```python\n{code}\n```"]
        if output.getvalue():
            page.append(f"prints\n\n```text\n{output.getvalue().rstrip()}\n```")
    return "\n\n".join(page) + "\n"


def main(out: str, *names: str) -> None:
    """Renders examples, each in a process and an empty folder of its own."""
    place = pathlib.Path(out).resolve()
    place.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", name]
            page = subprocess.run(
                command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        (place / f"{name}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(run(sys.argv[2]), end="")
    else:
        main(*sys.argv[1:])
