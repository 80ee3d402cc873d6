"""One file over HTTP: resumable, retried, and checked by its SHA-256."""

import contextlib
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from dpa_jax import errors
from dpa_jax.weights import formats

_TIMEOUT = 30.0  # seconds without a byte
_SLOWEST = 1 << 10  # bytes a second, on average over as many seconds
_ATTEMPTS = 5  # in a row that bring next to nothing
_LEAST = 1 << 16  # bytes that are more than that
_CHUNK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)

# called with the bytes had so far and their total, 0 if the server does not say
Progress = Callable[[int, int], None]


def download(
    url: str,
    path: pathlib.Path,
    sha256: str,
    largest: int,
    *,
    progress: Progress = lambda done, total: None,
    pause: float = 1.0,
) -> None:
    """Downloads `url` to `path` and checks it.

    What has come so far is kept beside `path` as `.part`, with the server's ETag, so
    that an interrupted download continues, in this process or a later one. Proxies
    come from the environment (`https_proxy`, `no_proxy`).

    Args:
      url: http or https.
      path: the file; its folder exists.
      sha256: the expected checksum in hexadecimal; a prefix of it is enough.
      largest: bytes that the file may have.
      progress: called after each chunk.
      pause: seconds before the first retry, doubled before each further one.

    Raises:
      DpaError: nothing answers, or too slowly; the server refuses; the file is too
        large, or its checksum another (what came is then deleted); or the disk cannot
        take it.
    """
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, tag, largest, progress):
                break
            reason = "the connection ended early"
        except _TooLarge:
            _forget(part, tag)
            raise errors.DpaError(
                f"{url} is not the expected file: it has more than {largest:,} bytes; "
                f"what came is deleted; {_ELSEWHERE}"
            ) from None
        except urllib.error.HTTPError as error:
            if error.code not in _TRANSIENT:
                reason = " ".join(str(error.reason).split())
                raise errors.DpaError(
                    f"{url} answers {error.code} {reason}; the file may have moved: "
                    f"{_ELSEWHERE}"
                ) from None
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", "") or error) or repr(error)
        failures = 0 if _size(part) >= before + _LEAST else failures + 1
        if failures == _ATTEMPTS:
            kept = f"; {_size(part):,} bytes are kept" if _size(part) else ""
            raise errors.DpaError(
                f"cannot download {url}: {reason} ({_ATTEMPTS} attempts{kept}); "
                f"{_proxies()}; {_ELSEWHERE}"
            )
        time.sleep(pause * 2**failures / 2)
    found = formats.file_sha256(part)
    if not found.startswith(sha256):
        _forget(part, tag)
        raise errors.DpaError(
            f"{url} is not the expected file: SHA-256 is {found}, expected {sha256}; "
            f"what came is deleted; {_ELSEWHERE}"
        )
    os.replace(part, path)
    tag.unlink(missing_ok=True)


_ELSEWHERE = (
    "name another server with --mirror URL, or bring the file by hand and give it "
    "with --from FILE (weights) or --stats FILE (statistics)"
)


def mirrored(url: str, mirror: str) -> str:
    """Puts a mirror in the place of a URL's scheme and host; `mirror` may be empty.

    Raises:
      UsageError: the mirror is no http or https URL.
    """
    if not mirror:
        return url
    if not mirror.startswith(("http://", "https://")):
        raise errors.UsageError(f"--mirror {mirror}: write it as https://HOST[/PATH]")
    return mirror.rstrip("/") + urllib.parse.urlsplit(url).path


class _TooLarge(Exception):
    """A file of more bytes than it may have."""


def _forget(part: pathlib.Path, tag: pathlib.Path) -> None:
    part.unlink(missing_ok=True)
    tag.unlink(missing_ok=True)


def _receive(
    url: str, part: pathlib.Path, tag: pathlib.Path, largest: int, progress: Progress
) -> bool:
    """Makes one request for what is still lacking; says whether all is there.

    Raises:
      _TooLarge: the file has more than `largest` bytes.
      OSError: the connection failed, or brought less than `_SLOWEST`.
    """
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "dpa_jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        # with If-Range a file that has changed comes whole, not as a wrong tail
        if tag.exists():
            request.add_header("If-Range", tag.read_text())
    try:
        # an opener of its own, since the shared one keeps the first call's proxies
        response = urllib.request.build_opener().open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:
            # nothing beyond what is had: complete, or a part of some other file
            part_is_whole = error.headers.get("Content-Range") == f"bytes */{have}"
            if not part_is_whole:
                part.unlink()
            return part_is_whole
        raise
    with response:
        given = response.headers.get("Content-Range", "")
        continues = re.fullmatch(rf"bytes {have}-\d+/(\d+|\*)", given)
        if response.status != 206:
            continues = None
        elif not continues:
            _forget(part, tag)
            raise http.client.HTTPException(
                f"it sends {given!r}, not what was asked for"
            )
        if not continues:
            have = 0
        # None if the server does not say, or says what is no number
        total = have + response.length if response.length else 0
        if continues and continues[1] != "*":
            total = int(continues[1])  # it may send less than the rest
        if max(have, total) > largest:
            raise _TooLarge
        etag = response.headers.get("ETag", "")
        with _disk(part):
            if etag and not etag.startswith("W/"):
                tag.write_text(etag)
            else:
                tag.unlink(missing_ok=True)
            file = part.open("ab" if continues else "wb")
        begun, received = time.monotonic(), 0
        with file:
            # what has come is taken at once, and not lost if the rest does not come
            while chunk := response.read1(_CHUNK):
                with _disk(part):
                    file.write(chunk)
                    file.flush()
                have, received = have + len(chunk), received + len(chunk)
                progress(have, total)
                if have > largest:
                    raise _TooLarge
                seconds = time.monotonic() - begun
                if seconds > _TIMEOUT and received < _SLOWEST * seconds:
                    raise TimeoutError(f"less than {_SLOWEST:,} bytes a second")
    return have >= total


@contextlib.contextmanager
def _disk(part: pathlib.Path) -> Iterator[None]:
    # a failure of the disk is no failure of the network, which would be retried
    try:
        yield
    except OSError as error:
        raise errors.DpaError(f"cannot write {part}: {error}") from None


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _proxies() -> str:
    proxies = {
        k: v for k, v in urllib.request.getproxies().items() if k in ("http", "https")
    }
    if not proxies:
        return "no proxy is set (https_proxy)"
    # a proxy's URL may hold a password
    hosts = {k: urllib.parse.urlsplit(v).hostname for k, v in proxies.items()}
    return "through " + ", ".join(f"{k} proxy {v}" for k, v in hosts.items())
