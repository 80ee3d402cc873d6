"""What the verbs under prepare do."""

import argparse
import functools
import pathlib

from dpa_jax import console, errors


def nih(options: argparse.Namespace) -> None:
    """Prepares NIH ChestX-ray14."""
    from dpa_jax.datasets import nih_prepare

    with console.counting("preparing", "images") as show:
        found = nih_prepare.prepare(
            pathlib.Path(options.source),
            pathlib.Path(options.data_dir),
            options.protocol,
            pathlib.Path(options.lists) if options.lists else None,
            options.jobs,
            options.allow_missing,
            options.allow_resized,
            show,
        )
    print(nih_prepare.describe(found))


def camelyon16(options: argparse.Namespace) -> None:
    """Cuts Camelyon16's slides into patches."""
    from dpa_jax.datasets import camelyon16_parts, camelyon16_prepare

    with console.counting("preparing", "slides") as show:
        made = camelyon16_prepare.prepare(
            options.source,
            options.data_dir,
            camelyon16_prepare.Options(
                options.lists,
                options.magnification,
                options.stain_target or camelyon16_prepare.STAIN_TARGET,
                options.mpp,
                options.seed,
            ),
            run=functools.partial(
                camelyon16_parts.run,
                runner=options.runner,
                jobs=options.jobs,
                beam_options=options.beam,
                progress=lambda done, total, _: show(done, total),
            ),
            parts=options.parts,
            allow_missing=options.allow_missing,
        )
    print(camelyon16_prepare.describe(*made))


def cifar10_svhn(options: argparse.Namespace) -> None:
    """Prepares CIFAR10 or SVHN, whichever was named."""
    from dpa_jax.datasets import cifar10_svhn

    name = {"svhn": "svhn_cropped"}.get(options.dataset, options.dataset)
    print(cifar10_svhn.prepare(name, options.data_dir, options.source))


def layout(options: argparse.Namespace) -> None:
    """Writes the manifest of a data set in one of the known layouts."""
    from dpa_jax.data import layouts

    if pathlib.Path(options.out).exists() and not options.overwrite:
        raise errors.DpaError(
            f"{options.out} is already there; give another --out, or --overwrite"
        )
    lines = layouts.write(options.layout, options.source, options.out)
    print("\n".join([*lines, f"see {options.out}"]))


def manifest(options: argparse.Namespace) -> None:
    """Prepares the images of a manifest as a TFDS data set."""
    from dpa_jax.datasets import from_manifest

    lines = from_manifest.prepare(
        options.manifest,
        options.name,
        options.data_dir,
        options.channels,
        options.size,
    )
    print("\n".join(lines))
