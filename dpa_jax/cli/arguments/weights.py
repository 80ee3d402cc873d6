"""The arguments of the verbs under weights."""

import argparse

from dpa_jax.cli.arguments import options


def add_verbs(add: options.Add) -> None:
    """Adds weights with its verbs."""
    weights = add(
        "weights",
        "get, import or check weights of backbones and feature statistics",
        "  dpa-jax weights fetch",
    )
    which = weights.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = add(
        "fetch",
        "download VGG19's ImageNet weights (575 MB) and the published statistics",
        "  dpa-jax weights fetch\n"
        "  dpa-jax weights fetch --backbone=resnet50\n"
        "  dpa-jax weights fetch --offline --from=model.safetensors --stats=stats.pt",
        which,
        "Resumes, checks, converts once; proxies are taken from the environment.",
    )
    _backbone(fetch, ("vgg19", "resnet50"))
    fetch.add_argument("--source", choices=("timm", "torchvision"), default="timm")
    fetch.add_argument("--from", dest="file", default="", metavar="FILE")
    fetch.add_argument("--stats", default="", metavar="FILE")
    fetch.add_argument("--mirror", default="", metavar="URL", help="in place of hosts")
    fetch.add_argument("--offline", action="store_true", help="use no network")
    fetch.add_argument("--keep", action="store_true", help="keep the download")
    bring = add(
        "import",
        "take any weights as what `imagenet` means",
        "  dpa-jax weights import vgg19.pth --stats=stats.npz",
        which,
    )
    _backbone(bring, ("vgg19", "resnet50"))
    bring.add_argument("file", nargs="?", default="", metavar="FILE")
    bring.add_argument("--stats", default="", metavar="FILE")
    stats = add(
        "stats",
        "compute feature statistics over a folder of images",
        "  dpa-jax weights stats images/ --out=stats.npz --resolution=64",
        which,
    )
    stats.add_argument("images", metavar="FOLDER")
    stats.add_argument("--out", required=True, metavar="FILE.npz")
    _backbone(stats)
    stats.add_argument("--weights", default="imagenet", help="default: %(default)s")
    stats.add_argument(
        "--layers", default="r12,r22,r32,r42", help="default: %(default)s"
    )
    stats.add_argument(
        "--resolution", type=options.positive, default=64, help="default: %(default)s"
    )
    stats.add_argument("--channels", type=int, choices=(1, 3), default=1)
    add(
        "verify",
        "recompute checksums and known activations of the cached weights",
        "  dpa-jax weights verify",
        which,
    )


def _backbone(parser: argparse.ArgumentParser, choices: tuple[str, ...] = ()) -> None:
    parser.add_argument(
        "--backbone",
        default="vgg19",
        choices=choices or None,
        help="whose (default: %(default)s)",
    )
