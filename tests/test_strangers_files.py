"""What could run a stranger's file: each use in the package is listed, with its reason.

A workdir, a checkpoint, weights, a manifest or a slide from a stranger is data. Only a
config.py and a search file are programs, as their documentation says.
"""

import ast
import pathlib

import pytest

import dpa_jax

PACKAGE = pathlib.Path(dpa_jax.__file__).parent
# modules that run what they read, or start programs
MODULES = {
    *("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy"),
    *("subprocess", "pty", "code"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "exec_module", "import_module"),
    *("system", "popen", "read_pickle", "unsafe_load", "full_load", "load_all"),
}
# calls that are safe with a constant argument alone
WITH = {
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
    ("torch", "load"): ("weights_only", True),
}

ALLOWED = {
    "__init__.py: import_module": "names of the package's own modules, from a table",
    "data/__init__.py: import_module": "names of its own modules, from a table",
    "backbones/base.py: import_module": "modules of the package, from a list of names",
    "exporting/export.py: import_module": "of the two writers of files it knows",
    "extensions.py: import_module": "what a config names; of a workdir with --trust",
    "storage/config_files.py: exec_module": "a config.py is a program, and said so",
    "slides/reader.py: import_module": "of the two readers of slides it knows",
    "tuning/search.py: exec": "a search file is a program, and said to be one",
    "tuning/search.py: compile": "of the same",
    "cli/verbs/workers.py: subprocess": "starts this program again as a worker",
    "storage/workdir.py: subprocess": "asks git for the commit of the package itself",
    "weights/formats.py: pickle": "an error of its name is caught; nothing is loaded",
}


def uses(source: str) -> set[str]:
    """Returns what a module's text uses that could run a file that it reads."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            found.update(MODULES.intersection(names))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update(MODULES.intersection([(node.module or "").partition(".")[0]]))
        elif isinstance(node, ast.Call):
            found.update(called(node))
    return found


def called(node: ast.Call) -> set[str]:
    function, owner = node.func, ""
    if isinstance(function, ast.Attribute):
        name = function.attr
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
    elif isinstance(function, ast.Name):
        name = function.id
    else:
        return set()
    if name == "compile" and isinstance(function, ast.Attribute):
        return set()  # of an expression or an XLA program
    given = {
        word.arg: word.value.value
        for word in node.keywords
        if isinstance(word.value, ast.Constant)
    }
    found = {name} & CALLS
    if given.get("shell"):
        found.add("shell")
    if (owner, name) == ("yaml", "load"):
        found.add("yaml.load")
    if (owner, name) in WITH:
        argument, value = WITH[owner, name]
        if given.get(argument, ...) is not value:
            found.add(f"{owner}.{name} without {argument}={value}")
    if name.startswith(("exec", "spawn")) and owner == "os":
        found.add(name)
    return found


def test_every_use_is_on_the_list_and_the_list_has_no_other():
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}: {use}"
        for path in PACKAGE.rglob("*.py")
        for use in uses(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import subprocess as s", "subprocess"),
        ("eval('1')", "eval"),
        ("builtins.exec(text)", "exec"),
        ("os.system('ls')", "system"),
        ("os.execv('ls', [])", "execv"),
        ("run('ls', shell=True)", "shell"),
        ("importlib.import_module(name)", "import_module"),
        ("np.load(path)", "np.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("np.load(path, allow_pickle=given)", "np.load without allow_pickle=False"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("yaml.unsafe_load(text)", "unsafe_load"),
    ],
)
def test_a_use_is_noticed(source, expected):
    assert uses(source) == {expected}


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "re.compile('a')",
        "import pickletools",
    ],
)
def test_what_runs_nothing_is_no_use(source):
    assert uses(source) == set()
