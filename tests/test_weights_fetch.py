import contextlib
import hashlib
import http.server
import pathlib
import pickle
import re
import sys
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from dpa_jax import errors
from dpa_jax.backbones import resnet50, vgg19
from dpa_jax.weights import (
    download,
    fetch,
    files,
    formats,
    published_statistics,
    statistics_files,
    verify,
)

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LARGEST = 4_000_000


class Server:
    """Serves files by path on this machine, as badly as a test asks for."""

    def __init__(self):
        self.files = {"/a/file.bin": CONTENT}
        self.etag = '"one"'
        self.ranges = True  # whether Range is honoured
        self.cut = []  # bytes after which the next answers break off
        self.status = []  # of the next answers, before any success
        self.stall = []  # bytes after which the next answers wait for the gate
        self.pace = 0  # bytes that are sent at a time, with a pause; 0 for all
        self.moved = {}  # where a path redirects to
        self.range = ""  # said of every answer, whatever it holds
        self.lengths = True  # whether Content-Length is sent
        self.requests = []  # (path, Range, If-Range)
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(
            target=self.http.serve_forever, args=(0.01,), daemon=True
        ).start()

    def answer(self, handler):
        if not self.stall:
            self.gate.wait(20)
        wanted = handler.headers.get("Range")
        unless = handler.headers.get("If-Range")
        self.requests.append((handler.path, wanted, unless))
        if handler.path in self.moved:
            handler.send_response(302)
            handler.send_header("Location", self.url + self.moved[handler.path])
            handler.end_headers()
            return
        status = self.status.pop(0) if self.status else 200
        body = self.files.get(handler.path)
        if status == 200 and body is None:
            status = 404
        if status != 200:
            handler.send_error(status)
            return
        start = 0
        if self.range:
            handler.send_response(206)
            handler.send_header("Content-Range", self.range)
            handler.end_headers()
            return
        if wanted and self.ranges and unless in (None, self.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header(
                "Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
        else:
            handler.send_response(200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        stop = start + self.cut.pop(0) if self.cut else len(body)
        if self.lengths is True:
            handler.send_header("Content-Length", str(len(body) - start))
        elif self.lengths:
            handler.send_header("Content-Length", self.lengths)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has had enough
            if self.stall:
                handler.wfile.write(body[start : start + self.stall.pop(0)])
                self.gate.clear()
                self.gate.wait(20)
                return
            step = self.pace or stop - start or 1
            for first in range(start, stop, step):
                handler.wfile.write(body[first : min(first + step, stop)])
                time.sleep(0.01 if self.pace else 0)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    yield server
    server.gate.set()
    server.http.shutdown()
    server.http.server_close()


def get(server, folder, sha256=SHA256, name="file.bin", **kwargs):
    path = folder / name
    url = f"{server.url}/a/{name}"
    download.download(url, path, sha256, LARGEST, pause=0, **kwargs)
    return path


def test_a_download_arrives_whole_and_reports_progress(server, tmp_path):
    seen = []
    path = get(server, tmp_path, progress=lambda *n: seen.append(n))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.cut = [1_200_000, 700_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [(r, i) for _, r, i in server.requests] == [
        (None, None),
        ("bytes=1200000-", '"one"'),
        ("bytes=1900000-", '"one"'),
    ]


def test_a_later_process_resumes_and_keeps_what_an_earlier_one_had(server, tmp_path):
    server.cut = [1_000_000] + [0] * 5
    with pytest.raises(errors.DpaError, match="1,000,000 bytes are kept"):
        get(server, tmp_path)
    server.cut, server.requests = [], []
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a/file.bin", "bytes=1000000-", '"one"')]


def test_a_file_that_changed_meanwhile_starts_again(server, tmp_path):
    server.cut = [1_000_000] + [0] * 5
    with pytest.raises(errors.DpaError):
        get(server, tmp_path)
    server.etag, changed = '"two"', CONTENT[::-1]
    server.files["/a/file.bin"] = changed
    sha256 = hashlib.sha256(changed).hexdigest()
    assert get(server, tmp_path, sha256).read_bytes() == changed


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_server_without_a_strong_etag_is_resumed_too(server, tmp_path, etag):
    server.etag, server.cut = etag, [1_000_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1] == ("/a/file.bin", "bytes=1000000-", None)


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut = False, [1_000_000]
    seen = []
    path = get(server, tmp_path, progress=lambda *n: seen.append(n))
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_server_without_ranges_that_always_breaks_is_given_up(server, tmp_path):
    server.ranges, server.cut = False, [1_000_000] * 20
    with pytest.raises(errors.DpaError, match="ended early"):
        get(server, tmp_path)
    assert len(server.requests) == 6  # one that brought something, five that did not


def test_a_server_without_lengths_is_checked_by_the_checksum(server, tmp_path):
    server.lengths = False
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 7])
def test_a_part_that_is_complete_or_too_long_ends_well(server, tmp_path, extra):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + bytes(extra))
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_what_came_before_a_stall_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    server.stall = [100_000, 70_000]
    seen = []

    def resume(done, total):
        seen.append(done)
        if not server.stall:
            server.gate.set()

    assert get(server, tmp_path, progress=resume).read_bytes() == CONTENT
    ranges = [wanted for _, wanted, _ in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=170000-"]


def test_a_server_that_sends_next_to_nothing_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.05)
    monkeypatch.setattr(download, "_SLOWEST", 10_000_000)
    server.pace = 1_000
    with pytest.raises(errors.DpaError, match="less than 10,000,000 bytes a second"):
        get(server, tmp_path)
    assert len(server.requests) == 5


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_that_is_too_large_is_not_taken(server, tmp_path, lengths):
    server.lengths = lengths
    server.files["/a/file.bin"] = bytes(LARGEST + 1)
    seen = [0]
    with pytest.raises(errors.DpaError, match="it has more than 4,000,000 bytes"):
        get(server, tmp_path, progress=lambda done, total: seen.append(done))
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())
    assert (seen[-1] == 0) == lengths


def test_a_redirection_in_a_circle_is_named(server, tmp_path):
    server.moved = {"/a/file.bin": "/a/other.bin", "/a/other.bin": "/a/file.bin"}
    with pytest.raises(errors.DpaError, match="file.bin answers 302 .* infinite loop"):
        get(server, tmp_path)


def test_a_redirection_is_followed(server, tmp_path):
    server.moved = {"/a/old.bin": "/a/file.bin"}
    assert get(server, tmp_path, name="old.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("had", [0, 1_000])
def test_a_server_that_sends_another_range_is_named(server, tmp_path, had):
    if had:
        (tmp_path / "file.bin.part").write_bytes(CONTENT[:had])
    server.range = "bytes 500-2999999/3000000"
    with pytest.raises(errors.DpaError, match="it sends 'bytes 500-2999999/3000000'"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_always_fails_is_given_up(server, tmp_path):
    server.status = [500] * 9
    with pytest.raises(errors.DpaError, match=r"500 Internal Server Error \(5 att"):
        get(server, tmp_path)
    assert len(server.requests) == 5


@pytest.mark.parametrize("length", ["many", "-1"])
def test_a_length_that_is_no_number_is_none(server, tmp_path, length):
    server.lengths = length
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_of_the_right_size_is_not_kept(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT[::-1]
    with pytest.raises(errors.DpaError, match=f"expected {SHA256}; what came is del"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_names_both_and_keeps_nothing(server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(errors.DpaError, match=f"SHA-256 is {SHA256}, expected {wrong}"):
        get(server, tmp_path, wrong)
    assert not list(tmp_path.iterdir())


def test_a_prefix_of_the_checksum_is_enough(server, tmp_path):
    assert get(server, tmp_path, SHA256[:8]).exists()


def test_404_is_not_retried_and_names_the_url(server, tmp_path):
    with pytest.raises(errors.DpaError, match=f"{server.url}/a/none.* 404 .*--mirror"):
        get(server, tmp_path, name="none")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = [503, 429]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_where_nothing_answers_the_message_says_what_to_do(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(
        errors.DpaError,
        match=f"{server.url}/a/file.bin.*refused.*no proxy is set.*--mirror.*--from",
    ):
        get(server, tmp_path)


def test_a_proxy_is_used_and_named_without_its_password(server, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://elsewhere.invalid/x"] = CONTENT
    path = tmp_path / "x"
    download.download("http://elsewhere.invalid/x", path, SHA256, LARGEST, pause=0)
    assert path.read_bytes() == CONTENT
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with pytest.raises(errors.DpaError, match="http proxy 127.0.0.1") as caught:
        download.download("http://elsewhere.invalid/y", path, SHA256, LARGEST, pause=0)
    assert "secret" not in str(caught.value)


def test_a_full_disk_is_not_retried(server, tmp_path):
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(errors.DpaError, match=r"cannot write .*file.bin.part.*space"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_mirror_replaces_scheme_and_host():
    url = "https://example.org/timm/model.safetensors"
    assert download.mirrored(url, "") == url
    mirrored = download.mirrored(url, "http://mirror:8080/hf/")
    assert mirrored == "http://mirror:8080/hf/timm/model.safetensors"
    with pytest.raises(errors.UsageError, match="--mirror mirror.org"):
        download.mirrored(url, "mirror.org")


# --- the cache ---------------------------------------------------------------------


@pytest.fixture
def weights(monkeypatch):
    """A VGG19 of a sixteenth of the channels, so that its files are small."""
    for layer, width in vgg19.LAYERS.items():
        monkeypatch.setitem(vgg19.LAYERS, layer, width // 16)
    return vgg19.load("random:7")


@pytest.fixture
def published(weights):
    """A weights file in torchvision's layout with a classifier, and statistics."""
    numbers = iter([0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34])
    state = {"head.fc.bias": np.zeros(1000, np.float32)}
    for layer in weights.values():
        number = next(numbers)
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"features.{number}.weight"] = kernel
        state[f"features.{number}.bias"] = layer["bias"]
    # PyTorch's format before it turned to archives, as far as it is looked at
    arrays = {"18": np.full(32, 0.5, "<f4"), "17": np.arange(32, dtype="<f4")}
    legacy = b"".join(
        pickle.dumps(part, 2)
        for part in (123, 1001, {"little_endian": True}, {"r42": ("17", "18")})
    )
    legacy += pickle.dumps(list(arrays), 2)
    for array in arrays.values():
        legacy += np.int64(len(array)).tobytes() + array.tobytes()
    return safetensors.numpy.save(state), legacy


@pytest.fixture
def cache(server, published, tmp_path, monkeypatch):
    """An empty cache beside a server that has the published files."""
    model, statistics = published
    checksums = [hashlib.sha256(content).hexdigest() for content in published]
    server.files |= {"/t/model.safetensors": model, "/s/stats.pt": statistics}
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        fetch,
        "SOURCES",
        {
            "vgg19": {
                "timm": ("https://timm.invalid/t/model.safetensors", checksums[0]),
                "torchvision": ("https://tv.invalid/t/vgg19.pth", "dcbb9e9d"),
            }
        },
    )
    monkeypatch.setattr(published_statistics, "URL", "https://stats.invalid/s/stats.pt")
    monkeypatch.setattr(published_statistics, "SHA256", checksums[1])
    return tmp_path / "cache"


def names(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


CACHED = ["lock", "vgg19_imagenet.safetensors", "vgg19_imagenet_statistics.npz"]


def test_fetch_converts_once_verifies_and_needs_no_torch(
    server, cache, weights, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = []
    fetch.fetch(mirror=server.url, report=lines.append)
    assert names(cache) == CACHED
    assert [line.split(":")[0].split()[0] for line in lines] == [
        "downloading",
        str(files.cached("vgg19")),
        "downloading",
        str(files.cached_statistics()),
    ]
    loaded = vgg19.load("imagenet")
    assert formats.fingerprint(loaded) == formats.fingerprint(weights)
    statistics = statistics_files.load("imagenet")
    np.testing.assert_array_equal(statistics["r42"]["mean"], np.arange(32))
    np.testing.assert_array_equal(statistics["r42"]["std"], np.full(32, 0.5))

    server.requests, lines[:] = [], []
    fetch.fetch(mirror=server.url, report=lines.append)
    assert not server.requests
    assert all("already there" in line for line in lines) and len(lines) == 2

    lines[:] = []
    verify.verify(lines.append)
    assert ["intact" in lines[0], "16 layers" in lines[1], "intact" in lines[2]] == [
        True
    ] * 3


def test_of_two_fetches_at_once_one_works_and_the_other_waits(server, cache):
    server.gate.clear()
    lines = [[], []]
    threads = [
        threading.Thread(
            target=fetch.fetch,
            kwargs={"mirror": server.url, "report": lines[i].append},
        )
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while not any("waiting" in line for line in lines[0] + lines[1]):
        assert time.monotonic() < deadline, "neither waits for the other"
        time.sleep(0.01)
    server.gate.set()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 2  # one for each file
    assert sorted(len(part) for part in lines) == [3, 4]
    assert names(cache) == CACHED


def test_offline_uses_files_that_are_brought(server, cache, published, tmp_path):
    with pytest.raises(errors.DpaError, match="timm.invalid.*--offline.*--from FILE"):
        fetch.fetch(offline=True)
    for name, content in zip(("w.safetensors", "s.pt"), published, strict=True):
        (tmp_path / name).write_bytes(content)
    fetch.fetch(
        weights_file=str(tmp_path / "w.safetensors"),
        statistics_file=str(tmp_path / "s.pt"),
        offline=True,
    )
    assert names(cache) == CACHED
    fetch.fetch(offline=True)
    assert not server.requests


def test_a_file_from_another_cache_is_taken_with_its_origin(cache, weights, tmp_path):
    files.save(tmp_path / "w.safetensors", weights, {"source": "the first"})
    fetch.import_files(weights_file=str(tmp_path / "w.safetensors"))
    assert files.read_metadata(files.cached("vgg19"))["source"] == "the first"


def test_fetch_from_an_unknown_file_is_refused_but_import_takes_it(
    cache, published, tmp_path
):
    other = tmp_path / "other.safetensors"
    state = safetensors.numpy.load(published[0])
    safetensors.numpy.save_file({**state, "head.fc.bias": np.ones(3)}, other)
    with pytest.raises(errors.DpaError, match="not one of the published files.*import"):
        fetch.fetch(weights_file=str(other))
    fetch.import_files(weights_file=str(other))
    with pytest.raises(errors.DpaError, match="already there, from .*other.safeten"):
        (tmp_path / "third").write_bytes(b"")
        fetch.import_files(weights_file=str(tmp_path / "third"))


def test_a_wrong_file_of_statistics_is_refused_before_the_download(
    server, cache, tmp_path
):
    (tmp_path / "s.pt").write_bytes(b"something else")
    with pytest.raises(errors.DpaError, match="s.pt is not one of the published"):
        fetch.fetch(mirror=server.url, statistics_file=str(tmp_path / "s.pt"))
    assert not server.requests


def test_an_interrupted_conversion_keeps_the_download(server, cache, monkeypatch):
    def full(*_):
        raise errors.DpaError("cannot write")

    with monkeypatch.context() as broken:
        broken.setattr(files, "save", full)
        with pytest.raises(errors.DpaError, match="cannot write"):
            fetch.fetch(mirror=server.url)
    assert "model.safetensors" in names(cache)
    server.requests = []
    fetch.fetch(mirror=server.url, keep=True)
    assert [path for path, _, _ in server.requests] == ["/s/stats.pt"]
    assert {"model.safetensors", "stats.pt"} < set(names(cache))


def test_torchvision_without_torch_is_refused_before_the_download(
    server, cache, monkeypatch
):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.DpaError, match=r"dpa_jax\[torch\]"):
        fetch.fetch(source="torchvision", mirror=server.url)
    assert not server.requests
    with pytest.raises(errors.UsageError, match="timm, torchvision"):
        fetch.fetch(source="tensorflow")


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DPA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(errors.DpaError, match="cannot write the cache.*DPA_JAX_CACHE"):
        fetch.fetch(offline=True)


def test_verify_tells_damage(cache, weights, published, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(published[0])
    fetch.import_files(weights_file=str(tmp_path / "w.safetensors"))
    metadata = files.read_metadata(files.cached("vgg19"))
    bias = weights["c54"]["bias"].copy()
    bias[3] += 1e-6
    damaged = {**weights, "c54": {**weights["c54"], "bias": bias}}
    files.save(files.cached("vgg19"), damaged, metadata)
    with pytest.raises(errors.DpaError, match="is damaged.*weights fetch"):
        verify.verify()


def test_verify_tells_wrong_arithmetic(cache, weights, published, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(published[0])
    fetch.import_files(weights_file=str(tmp_path / "w.safetensors"))
    metadata = files.read_metadata(files.cached("vgg19"))
    altered = re.sub(r'"r54": [\d.]+', '"r54": 0.123', metadata["activations"])
    files.save(files.cached("vgg19"), weights, {**metadata, "activations": altered})
    with pytest.raises(errors.DpaError, match="r54 of the fixed image has mean"):
        verify.verify(lambda line: None)


def test_recorded_activations_are_those_of_a_convolution(weights):
    image, layer = verify._probe()[0], weights["c11"]
    sums = []
    for channel in range(4):
        total = sum(
            scipy.signal.correlate2d(
                image[..., c], layer["kernel"][:, :, c, channel], "same"
            )
            for c in range(3)
        )
        sums.append(np.maximum(total + layer["bias"][channel], 0).mean())
    found = verify.activation_means(weights)["r11"]
    assert found == pytest.approx(np.mean(sums), rel=1e-5)


def test_the_published_statistics_are_stored_as_they_are(shared, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("DPA_JAX_CACHE", str(cache))
    path = shared / "fixtures" / "vgg19_ILSVRC2012_object_detection_mean_var.pt"
    assert published_statistics.URL.endswith(path.name)
    fetch.import_files(statistics_file=str(path))
    stored = statistics_files.load("imagenet")
    expected = statistics_files.load(str(path.parent / "vgg19_feature_stats.npz"))
    assert formats.fingerprint(stored) == formats.fingerprint(expected)
    assert (
        pathlib.Path(files.read_metadata(files.cached_statistics())["source"]) == path
    )


def test_another_backbone_has_a_file_of_its_own_in_the_cache(
    server, cache, monkeypatch, rng
):
    stem = {"kernel": (7, 7, 3, 4), "bias": (4,)}
    monkeypatch.setattr(resnet50, "shapes", lambda: {"conv1": stem})
    tensors = {"conv1.weight": rng.standard_normal((4, 3, 7, 7)).astype(np.float32)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensors[f"bn1.{name}"] = rng.uniform(1, 2, 4).astype(np.float32)
    content = safetensors.numpy.save(tensors)
    server.files["/r/model.safetensors"] = content
    url = "https://timm.invalid/r/model.safetensors"
    source = url, hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(fetch.SOURCES, "resnet50", {"timm": source})
    fetch.fetch(backbone="resnet50", mirror=server.url, report=lambda line: None)
    assert names(cache) == ["lock", "resnet50_imagenet.safetensors"]
    scale = tensors["bn1.weight"] / np.sqrt(tensors["bn1.running_var"] + 1e-5)
    loaded = resnet50.load("imagenet")["conv1"]
    expected = tensors["conv1.weight"].transpose(2, 3, 1, 0) * scale
    np.testing.assert_allclose(loaded["kernel"], expected, rtol=1e-6)
    shift = tensors["bn1.bias"] - tensors["bn1.running_mean"] * scale
    np.testing.assert_allclose(loaded["bias"], shift, rtol=1e-5, atol=1e-6)


def test_statistics_are_published_for_vgg19_alone(server):
    with pytest.raises(errors.UsageError, match="--stats are those of vgg19"):
        fetch.fetch(backbone="resnet50", statistics_file="s.npz", mirror=server.url)
