"""The licences of all that is installed with the package and its extras."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

EXTRAS = (
    *("audit", "beam", "cuda12", "cuda13", "dicom", "nifti"),
    *("onnx", "test", "torch", "tpu", "tune", "wsi"),
)
# licences that ask for no more than their text to be kept, as packages name them
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "AFL-2.1", "BSD"),
    *("BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSD-4.3TAHOE", "BSL-1.0"),
    *("CC0-1.0", "IJG", "ISC", "LicenseRef-Public-Domain", "MIT", "MIT-CMU", "PSF-2.0"),
    *("Unlicense", "Zlib", "blessing", "libpng-2.0", "libtiff"),
}
# others, with the reason why they may be used
OTHERS = {
    "certifi": ("MPL-2.0", "a list of certificates, used unchanged"),
    "fqdn": ("MPL-2.0", "extra audit; used unchanged"),
    "tqdm": ("MPL-2.0", "used unchanged"),
    "hypothesis": ("MPL-2.0", "runs the tests alone"),
    "openslide-python": ("LGPL-2.1-only", "extra wsi; a module of its own, unchanged"),
    "openslide-bin": (
        "LGPL-2.1-only, LGPL-2.1-or-later, GPL-2.0-only, MPL-1.1",
        "extra wsi; a library that is loaded when it runs. GPL and MPL-1.1 are choices",
    ),
}
# as classifiers and free text call them
NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> set[str]:
    """Returns the names of what is installed of all that the package may need."""
    found: dict[str, set[str]] = {}
    pending = [("dpa_jax", set(EXTRAS))]
    while pending:
        name, extras = pending.pop()
        name = canonical(name)
        if name in found and extras <= found[name]:
            continue
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed, or of another system
        found[name] = found.get(name, set()) | extras
        for requirement in map(Requirement, needs):
            environments = [{"extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(
                map(requirement.marker.evaluate, environments)
            ):
                pending.append((requirement.name, set(requirement.extras)))
    return set(found)


def licences(name: str) -> set[str]:
    """Returns what a package says of itself: an expression, classifiers, or text."""
    about = importlib.metadata.metadata(name)
    expression = about.get("License-Expression")
    if expression:
        return set(re.split(r" AND | OR ", re.sub(r"[()]", "", expression)))
    prefix = "License :: "
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith(prefix)]
    found = {c.rpartition(" :: ")[2] for c in classifiers} - {"OSI Approved"}
    text = (about.get("License") or "").strip()
    if not found and text:
        line = text.splitlines()[0].strip()
        found = set(re.split(r" AND | OR ", line))
    return {NAMES.get(one, one) for one in found}


@pytest.mark.parametrize("name", sorted(dependencies()))
def test_a_licence_is_known_and_allowed(name):
    found = licences(name)
    also, _ = OTHERS.get(name, ("", ""))
    assert found, f"{name} names no licence"
    assert found <= PERMISSIVE | set(filter(None, also.split(", "))), name


def test_what_is_needed_is_found():
    assert {"dpa-jax", "jax", "numpy", "pillow", "pytest"} <= dependencies()
