"""Mutated files of every format: an image or an `ImageError`, at little cost.

`FUZZ_EXAMPLES=100000 python -m pytest -n 0 tests/test_decode_fuzz.py` takes longer.
"""

import os
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_decode import deflated, dicom, encode

from benchmarks import measure
from dpa_jax.data.decode import ImageError, Preprocessing, decode

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))  # of each format
# of one file, on a busy machine too; and beyond what the process had: as many pixels
# as Pillow allows, 89 million, take most of it
SECONDS, MEBIBYTES = 5.0, 700
GREY = Preprocessing(1, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
DEEP = NOISE[..., 0].astype(np.uint16) * 257

CORPORA = {
    "PNG": lambda: [
        encode(NOISE),
        encode(NOISE[..., 0]),
        encode(DEEP),
        encode(Image.fromarray(NOISE).quantize(16)),
    ],
    "JPEG": lambda: [
        encode(NOISE, "JPEG"),
        encode(NOISE[..., 0], "JPEG", progressive=True),
    ],
    "BMP": lambda: [encode(NOISE, "BMP"), encode(NOISE[..., 0], "BMP")],
    "TIFF": lambda: [
        encode(NOISE, "TIFF"),
        encode(DEEP, "TIFF"),
        encode(NOISE, "TIFF", compression="tiff_lzw"),
        encode(NOISE[..., 0], "TIFF", compression="tiff_adobe_deflate"),
    ],
    "DICOM": lambda: [
        dicom(DEEP, bits=16, WindowCenter=9, WindowWidth=99, RescaleSlope=2),
        dicom(NOISE, bits=8),
        dicom(NOISE[..., 0], bits=8, PhotometricInterpretation="MONOCHROME1"),
        deflated(DEEP),
    ],
}
# where bytes are changed, from 0 to 1, more often in the header; to what; and by how
# much the file is cut
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.2))
VALUES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 255]))
MUTATIONS = st.lists(st.tuples(PLACES, VALUES), min_size=1, max_size=8)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))


def mutated(content: bytes, changes, cut: float) -> bytes:
    """Changes bytes of a file and cuts off its end."""
    damaged = bytearray(content[: max(1, round(len(content) * cut))])
    for place, value in changes:
        damaged[round(place * (len(damaged) - 1))] = value
    return bytes(damaged)


def with_checksums(content: bytes) -> bytes:
    """Makes the checksums of a PNG right again, so that it is read in spite of all."""
    repaired, first = bytearray(content), 8
    while first + 12 <= len(content):
        length = int.from_bytes(content[first : first + 4])
        end = first + 8 + length
        repaired[end : end + 4] = zlib.crc32(content[first + 4 : end]).to_bytes(4)
        first = end + 4
    return bytes(repaired[: len(content)])


def check(content: bytes) -> bool:
    """Decodes a file; returns whether it still is an image."""
    begun = time.process_time()
    try:
        found = decode(content, GREY, "it")
    except ImageError as error:
        assert str(error).startswith("it: ") and "\n" not in str(error)
        found = None
    assert time.process_time() - begun < SECONDS
    if found is None:
        return False
    assert found.shape == (16, 16, 1) and found.dtype == np.uint8
    return True


@pytest.mark.parametrize("kind", CORPORA)
def test_whatever_the_bytes_it_is_an_image_or_an_image_error(kind):
    corpus, images = CORPORA[kind](), []

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(
        st.integers(0, len(corpus) - 1),
        MUTATIONS,
        st.one_of(st.just(1.0), st.floats(0, 1)),
    )
    def attack(number, changes, cut):
        damaged = mutated(corpus[number], changes, cut)
        images.append(check(with_checksums(damaged) if kind == "PNG" else damaged))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow and pydicom cope with
        _, taken = measure.with_resident_peak(attack)
    assert taken is not None and taken < MEBIBYTES * 2**20
    assert any(images) and not all(images)  # or the mutations are none
