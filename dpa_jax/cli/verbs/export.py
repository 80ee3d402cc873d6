"""What export does."""

import argparse
import sys


def export(options: argparse.Namespace) -> None:
    """Writes a run as one file for other programs."""
    from dpa_jax.devices import compilation_cache
    from dpa_jax.exporting import export as exporting

    compilation_cache.enable()
    found = exporting.export(
        options.workdir,
        options.out,
        format=options.format,
        side=options.side,
        verify=options.verify,
        trust=options.trust,
        overwrite=options.overwrite,
    )
    sizes = ", ".join(map(str, found.shape))
    print(f"{found.path}: {found.content}, {found.size / 1e6:.1f} MB")
    print(f"takes images uint8 [batch, {sizes}]; gives score [batch] and map")
    agreement = found.agreement
    batches = ", ".join(map(str, agreement.batches))
    print(
        f"verified on {agreement.images} {found.source}, in batches of {batches}: "
        f"scores differ by {agreement.differences['score']:.1e} at most, maps by "
        f"{agreement.differences['map']:.1e}"
    )
    if found.calibration:
        print(f"calibration: {found.calibration}")
    if found.preparation:
        fields = ", ".join(f"{k}={v}" for k, v in found.preparation.items())
        print(
            f"note: images must be prepared as in training ({fields}); "
            "--side=PIXELS puts that into the file",
            file=sys.stderr,
        )
    if found.random_weights:
        print(
            f"warning: the backbone's weights are random ({found.random_weights})",
            file=sys.stderr,
        )
