"""Filling the cache of ImageNet weights and statistics."""

import contextlib
import fcntl
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator

from dpa_jax import errors
from dpa_jax.backbones import base
from dpa_jax.weights import (
    download,
    files,
    formats,
    published_statistics,
    statistics_files,
    verify,
)

# backbone -> source -> (URL, SHA-256 or, where only that is published, its beginning)
SOURCES = {
    "vgg19": {
        "timm": (
            "https://huggingface.co/timm/vgg19.tv_in1k/resolve/main/model.safetensors",
            "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
        ),
        "torchvision": (
            "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
            "dcbb9e9d",
        ),
    },
    "resnet50": {
        "timm": (
            "https://huggingface.co/timm/resnet50.tv_in1k/resolve/main/"
            "model.safetensors",
            "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
        ),
        "torchvision": (
            "https://download.pytorch.org/models/resnet50-0676ba61.pth",
            "0676ba61",
        ),
    },
}
_LARGEST = 1 << 30  # bytes of a download; the largest has 575 MB
Report = Callable[[str], None]


def fetch(
    *,
    backbone: str = "vgg19",
    source: str = "timm",
    weights_file: str = "",
    statistics_file: str = "",
    mirror: str = "",
    offline: bool = False,
    keep: bool = False,
    progress: download.Progress = lambda done, total: None,
    report: Report = print,
) -> None:
    """Puts a backbone's ImageNet weights into the cache; VGG19's statistics too.

    What is there already stays. A download is checked, converted once to the
    convolutions alone (80 of 575 MB of VGG19) and deleted. Of several processes that
    fetch at once, one works and the others wait.

    Args:
      backbone: one of `SOURCES`.
      source: where the weights come from: `timm`, or `torchvision` (the same weights;
        needs PyTorch to convert).
      weights_file: take the weights from this file instead: either of the downloads
        above, or a file from another machine's cache.
      statistics_file: likewise the statistics.
      mirror: URL in the place of the servers' scheme and host.
      offline: do not use the network.
      keep: leave the download in the cache after conversion.
      progress: called with the bytes had and their total.
      report: called with one line on each thing done.

    Raises:
      DpaError: the message says what could not be had, and from where else to take it.
      UsageError: there is no such source.
    """
    sources = SOURCES[backbone]
    if source not in sources:
        raise errors.UsageError(f"--source {source}: there are {', '.join(sources)}")
    if statistics_file and backbone != "vgg19":
        raise errors.UsageError(
            f"--stats are those of vgg19; {backbone}'s are computed from the training "
            "images (perceptual.statistics=train) or by `dpa-jax weights stats`"
        )
    url, sha256 = sources[source]
    cached = files.cached(backbone)
    url = download.mirrored(url, mirror)
    statistics_url = download.mirrored(published_statistics.URL, mirror)
    with _alone(report):
        if statistics_file and not files.cached_statistics().is_file():
            # before a download that takes long
            _check_origin(statistics_file, [published_statistics.SHA256])
        if _present(cached, weights_file, report):
            pass
        elif weights_file:
            _check_origin(weights_file, [sha for _, sha in sources.values()])
            _store_weights(backbone, weights_file, weights_file, report)
        else:
            if source == "torchvision" and not importlib.util.find_spec("torch"):
                raise errors.DpaError(
                    "torchvision's file needs PyTorch to convert: pip install "
                    "'dpa_jax[torch]', or fetch without --source"
                )
            with _downloaded(url, sha256, offline, keep, progress, report) as path:
                _store_weights(backbone, path, url, report)
        if backbone != "vgg19":
            return  # of no other have statistics been published
        if _present(files.cached_statistics(), statistics_file, report):
            pass
        elif statistics_file:
            _store_statistics(statistics_file, statistics_file, report)
        else:
            sha256 = published_statistics.SHA256
            with _downloaded(
                statistics_url, sha256, offline, keep, progress, report
            ) as path:
                _store_statistics(path, statistics_url, report)


def import_files(
    *,
    backbone: str = "vgg19",
    weights_file: str = "",
    statistics_file: str = "",
    report: Report = print,
) -> None:
    """Puts any weights or statistics into the cache, as what `imagenet` means.

    Names, shapes and values are checked; where the files come from is for the caller
    to know, and is recorded.

    Args:
      backbone: whose weights.
      weights_file: see `load` in the backbone's module.
      statistics_file: see `statistics_files.load`.
      report: called with one line on each thing done.

    Raises:
      DpaError: a file is not what it should be, or the cache holds others already.
    """
    with _alone(report):
        cached = files.cached(backbone)
        if weights_file and not _present(cached, weights_file, report):
            _store_weights(backbone, weights_file, weights_file, report)
        if statistics_file and not _present(
            files.cached_statistics(), statistics_file, report
        ):
            _store_statistics(statistics_file, statistics_file, report)


def _present(path: pathlib.Path, instead: str, report: Report) -> bool:
    if not path.is_file():
        return False
    source = files.read_metadata(path).get("source", "an unknown source")
    if instead and formats.file_sha256(instead) not in (
        formats.file_sha256(path),
        files.read_metadata(path).get("source_sha256"),
    ):
        raise errors.DpaError(
            f"{path} is already there, from {source}; delete it to take {instead}"
        )
    report(f"{path}: already there, from {source}")
    return True


def _check_origin(path: str, checksums: list[str]) -> None:
    if not pathlib.Path(path).is_file():
        raise errors.DpaError(f"there is no file {path}")
    found = formats.file_sha256(path)
    if any(found.startswith(known) for known in checksums) or files.read_metadata(path):
        return
    raise errors.DpaError(
        f"{path} is not one of the published files: SHA-256 is {found}, expected "
        f"{' or '.join(checksums)}; if you know what it holds, use "
        "`dpa-jax weights import`"
    )


def _store_weights(
    backbone: str, path: str | pathlib.Path, source: str, report: Report
) -> None:
    found = base.named(backbone)
    weights = found.load(str(path), found.layers)
    metadata = _origin(path, source)
    if backbone == "vgg19":
        metadata["activations"] = json.dumps(verify.activation_means(weights))
    files.save(files.cached(backbone), weights, metadata)
    report(f"{files.cached(backbone)}: stored, from {source}")


def _store_statistics(path: str | pathlib.Path, source: str, report: Report) -> None:
    statistics = statistics_files.load(str(path))
    statistics_files.save(files.cached_statistics(), statistics, _origin(path, source))
    report(f"{files.cached_statistics()}: stored, from {source}")


def _origin(path: str | pathlib.Path, source: str) -> dict[str, str]:
    # a file from another cache keeps its first origin
    earlier = files.read_metadata(path)
    return {
        "source": earlier.get("source", str(source)),
        "source_sha256": earlier.get("source_sha256", formats.file_sha256(path)),
    }


@contextlib.contextmanager
def _downloaded(
    url: str,
    sha256: str,
    offline: bool,
    keep: bool,
    progress: download.Progress,
    report: Report,
) -> Iterator[pathlib.Path]:
    path = files.cache_dir() / "downloads" / url.rpartition("/")[2]
    if path.is_file():
        _check_origin(str(path), [sha256])
    else:
        if offline:
            raise errors.DpaError(
                f"{url} is not in the cache ({files.cache_dir()}), and --offline "
                "forbids fetching it; bring the file by hand and give it with "
                "--from FILE (weights) or --stats FILE (statistics)"
            )
        report(f"downloading {url}")
        path.parent.mkdir(exist_ok=True)
        download.download(url, path, sha256, _LARGEST, progress=progress)
    yield path
    if not keep:
        path.unlink()


@contextlib.contextmanager
def _alone(report: Report) -> Iterator[None]:
    folder = files.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that fills {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise errors.DpaError(
            f"cannot write the cache {folder}: {error}; choose another folder with "
            "DPA_JAX_CACHE"
        ) from None
    with lock:
        yield
