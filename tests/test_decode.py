import io
import pathlib
import struct
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dpa_jax import errors
from dpa_jax.data import decode as decoding
from dpa_jax.data import sources
from dpa_jax.data.decode import ImageError, Preprocessing, decode

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY, RGB = Preprocessing(1, 16), Preprocessing(3, 16)


def encode(image, kind="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width, height, bits, colour, rows: bytes) -> bytes:
    """Puts a PNG together by hand: what Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, *, bits: int, photometric: int) -> bytes:
    """Puts an uncompressed grey TIFF together by hand, `values` being its strip."""
    strip = values.tobytes()
    tags = [
        (256, 16),  # width
        (257, 16),  # height
        (258, bits),
        (259, 1),  # no compression
        (262, photometric),
        (273, 8),  # where the strip begins
        (277, 1),  # samples per pixel
        (278, 16),  # rows per strip
        (279, len(strip)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_is_kept(kind):
    np.testing.assert_array_equal(decode(encode(RAMP, kind), GREY)[..., 0], RAMP)


def test_grey_is_repeated_for_rgb():
    np.testing.assert_array_equal(
        decode(encode(RAMP), RGB), np.repeat(RAMP[..., None], 3, 2)
    )


def test_jpeg():
    smooth = np.broadcast_to(np.arange(40, 200, 10, np.uint8), (16, 16))
    decoded = decode(encode(smooth, "JPEG", quality=95), GREY)[..., 0]
    np.testing.assert_allclose(decoded.astype(int), smooth, atol=3)


def test_rgb_becomes_grey_by_luma():
    rgb = np.random.default_rng(0).integers(0, 256, [16, 16, 3], np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    decoded = decode(encode(rgb), GREY)[..., 0]
    np.testing.assert_allclose(decoded, luma, atol=0.51)


def test_alpha_is_dropped_and_not_blended():
    rgba = np.random.default_rng(0).integers(0, 256, [16, 16, 4], np.uint8)
    np.testing.assert_array_equal(decode(encode(rgba), RGB), rgba[..., :3])


def test_grey_with_alpha():
    both = Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)])
    np.testing.assert_array_equal(decode(encode(both), GREY)[..., 0], RAMP)


def test_palette_with_transparency():
    indices = np.repeat(np.arange(4, dtype=np.uint8), 64).reshape(16, 16)
    colours = np.random.default_rng(0).integers(0, 256, [4, 3], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    data = encode(image, transparency=bytes([0, 128, 255, 255]))
    np.testing.assert_array_equal(decode(data, RGB), colours[indices])


def test_one_bit():
    bits = RAMP % 3 == 0
    decoded = decode(encode(Image.fromarray(bits)), GREY)[..., 0]
    np.testing.assert_array_equal(decoded, 255 * bits)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(kind):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode(encode(values, kind), GREY)[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(values / 257))


def test_16_bit_colour_keeps_the_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, [16, 16, 3], np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    decoded = decode(png(16, 16, 16, 2, rows), RGB)
    np.testing.assert_array_equal(decoded, values >> 8)


@pytest.mark.parametrize("photometric", [0, 1])
def test_16_bit_tiff_follows_its_photometric(photometric):
    values = np.linspace(0, 65535, 256).astype("<u2").reshape(16, 16)
    decoded = decode(tiff(values, bits=16, photometric=photometric), GREY)[..., 0]
    expected = np.rint(values / 257)
    np.testing.assert_array_equal(decoded, expected if photometric else 255 - expected)


def test_12_bit_tiff_reaches_white():
    values = np.linspace(0, 4095, 256).astype(np.int64)
    first, second = values[::2], values[1::2]
    packed = np.stack(
        [first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1
    ).astype(np.uint8)
    decoded = decode(tiff(packed, bits=12, photometric=1), GREY)
    np.testing.assert_array_equal(decoded.ravel(), np.rint(values / 4095 * 255))


def test_32_bit_integers_within_16_bits_are_scaled():
    values = np.linspace(0, 65535, 256).astype(np.int32).reshape(16, 16)
    decoded = decode(encode(values, "TIFF"), GREY)[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(values / 257))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_beyond_16_bits_are_refused(value):
    values = np.full([16, 16], value, np.int32)
    with pytest.raises(ImageError, match="from 0 to 65535"):
        decode(encode(values, "TIFF"), GREY)


def test_float_tiff_is_refused():
    with pytest.raises(ImageError, match="floating-point"):
        decode(encode(np.zeros([16, 16], np.float32), "TIFF"), GREY)


def test_first_page_of_a_tiff():
    pages = encode(RAMP, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))])
    np.testing.assert_array_equal(decode(pages, GREY)[..., 0], RAMP)


def test_animation_is_refused():
    frames = encode(RAMP, save_all=True, append_images=[Image.fromarray(255 - RAMP)])
    with pytest.raises(ImageError, match="animation"):
        decode(frames, GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation(kind, dtype):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    values = RAMP.astype(dtype) * np.array(257 if dtype == np.uint16 else 1, dtype)
    decoded = decode(encode(values, kind, exif=exif), GREY)[..., 0]
    np.testing.assert_array_equal(decoded, np.rot90(RAMP, -1))


def test_dicom_with_pydicom_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(errors.DpaError, match=r"a\.dcm.*dpa_jax\[dicom\]") as caught:
        decode(bytes(128) + b"DICM", GREY, "a.dcm")
    assert not isinstance(caught.value, ImageError)  # no reason to skip the image


def resized_by_hand(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with antialiasing along both axes, as triangle filters in float64."""

    def matrix(old):
        scale = old / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        distance = np.abs(np.arange(old) + 0.5 - centres) / max(scale, 1)
        weights = np.clip(1 - distance, 0, None)
        return weights / weights.sum(1, keepdims=True)

    return matrix(image.shape[0]) @ image @ matrix(image.shape[1]).T


def test_largest_square_is_cropped_and_resized():
    image = np.random.default_rng(0).integers(0, 256, [40, 60], np.uint8)
    decoded = decode(encode(image), GREY)[..., 0]
    expected = resized_by_hand(image[:, 10:50], 16)
    np.testing.assert_allclose(decoded, expected, atol=1.01)  # Pillow rounds twice


def test_resize_then_crop_then_size():
    image = np.random.default_rng(0).integers(0, 256, [40, 60], np.uint8)
    decoded = decode(encode(image), Preprocessing(1, 8, resize=30, crop=20))[..., 0]
    expected = resized_by_hand(np.rint(resized_by_hand(image, 30))[5:25, 5:25], 8)
    np.testing.assert_allclose(decoded, expected, atol=1.6)


def test_equalize_flattens_the_histogram_of_the_crop():
    image = np.full([96, 96], 255, np.uint8)
    # 64 neighbouring levels, as common as each other
    image[16:80, 16:80] = 100 + np.arange(64, dtype=np.uint8)[:, None]
    decoded = decode(encode(image), Preprocessing(1, 64, crop=64, equalize=True))
    levels = np.unique(decoded)
    assert (levels[0], levels[-1]) == (0, 255)
    np.testing.assert_allclose(np.diff(levels.astype(int)), 255 / 63, atol=1.1)


@pytest.mark.parametrize("name", ["00000001_000.png", "00027426_000.png"])
@pytest.mark.parametrize("equalize", [False, True])
def test_nih_preprocessing_byte_for_byte(name, equalize):
    fixture = SHARED / "fixtures" / "nih_preprocessing.npz"
    if not fixture.exists():
        pytest.skip("no ../shared/fixtures/nih_preprocessing.npz")
    path = SHARED / "data" / "nih_chest_xray14" / "images_512" / name
    decoded = decode(
        path, Preprocessing(1, 64, resize=300, crop=224, equalize=equalize)
    )
    with np.load(fixture) as expected:
        key = f"{name}/64_equalized" if equalize else f"{name}/64"
        np.testing.assert_array_equal(decoded[..., 0], expected[key])


def test_smaller_than_the_crop(tmp_path):
    path = tmp_path / "small.png"
    path.write_bytes(encode(RAMP))
    with pytest.raises(ImageError, match=r"small\.png.*16x16.*crop of 17"):
        decode(path, Preprocessing(1, 16, crop=17))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_truncated(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, [64, 64, 3], np.uint8)
    data = encode(noise, kind)
    # A TIFF's directory may stand at its end; half of it is then no TIFF at all.
    path = tmp_path / "cut.png"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.png: \S+") as caught:
        decode(path, GREY)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image\n" * 40, "not a readable PNG, JPEG, TIFF, BMP or DICOM"),
        (b"\x89PNG\r\n\x1a\n", "not a readable PNG"),
        (b"GIF89a" + bytes(100), "not a readable PNG"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"scan\.png: {reason}"):
        decode(path, GREY)


def test_flipped_bytes_only_ever_raise_an_image_error():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, [24, 24, 3], np.uint8)
    for kind in ("PNG", "TIFF", "BMP"):
        data = np.frombuffer(encode(noise, kind), np.uint8)
        for _ in range(150):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            damaged[rng.integers(8, 80)] ^= 255  # headers more often than not
            try:
                decode(damaged.tobytes(), GREY)
            except ImageError:
                pass


@pytest.mark.parametrize("pixels", [200, 100])  # Pillow warns of one, refuses the other
def test_decompression_bomb(monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(ImageError, match=f"more than {Image.MAX_IMAGE_PIXELS} pixels"):
        decode(encode(RAMP), GREY)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_of_which_no_warning_is_heard(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ImageError, match=f"more than {Image.MAX_IMAGE_PIXELS} pixels"):
        decode(encode(RAMP), GREY)


def test_what_the_system_refuses_is_no_fault_of_the_image(monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "open", refuse, raising=False)
    with pytest.raises(errors.DpaError, match=r"a\.png.*Permission") as caught:
        decode("a.png", GREY)
    assert not isinstance(caught.value, ImageError)


def test_offsets_before_the_file_are_damage(tmp_path, monkeypatch):
    def lost(*args, **options):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(Image, "open", lost)
    (tmp_path / "a.tif").write_bytes(encode(RAMP, "TIFF"))
    with pytest.raises(ImageError, match="Invalid argument"):
        decode(tmp_path / "a.tif", GREY)


def test_missing_file(tmp_path):
    with pytest.raises(errors.DpaError, match=r"gone\.png.*No such file"):
        decode(tmp_path / "gone.png", GREY)


@pytest.mark.parametrize(
    "values",
    [
        {"channels": 2, "size": 8},
        {"channels": 1, "size": 0},
        {"channels": 1, "size": 8, "crop": -1},
        {"channels": 1, "size": 8, "resize": 20, "crop": 21},
    ],
)
def test_impossible_preprocessing(values):
    with pytest.raises(errors.UsageError):
        Preprocessing(**values)


# DICOM


def dicom(stored: np.ndarray, *, bits: int = 12, **elements) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra is missing")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    data.BitsAllocated = 8 * stored.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    data["PixelData"].VR = "OW" if stored.itemsize == 2 else "OB"
    for name, value in elements.items():
        setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


STORED = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)


def test_dicom_without_a_window_spans_its_bits():
    decoded = decode(dicom(STORED), GREY)[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(STORED / 4095 * 255))


def test_dicom_monochrome1_is_inverted():
    data = dicom(STORED, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(
        decode(data, GREY)[..., 0], np.rint(255 - STORED / 4095 * 255)
    )


def test_signed_dicom_with_a_negative_slope():
    signed = (STORED.astype(np.int16) - 2048).astype(np.int16)
    data = dicom(signed, RescaleSlope=-2, RescaleIntercept=10)
    decoded = decode(data, GREY)[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(255 - STORED / 4095 * 255))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_dicom_window_agrees_with_pydicom(function):
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra is missing")
    data = dicom(
        STORED,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 500],
        WindowWidth=[1400, 9],
        VOILUTFunction=function,
    )
    read = pydicom.dcmread(io.BytesIO(data))
    windowed = pydicom.pixels.apply_windowing(STORED.astype(float) - 1024, read)
    # pydicom returns it in the range of the rescaled bits: -1024 to 3071
    expected = (windowed + 1024) / 4095 * 255
    np.testing.assert_allclose(decode(data, GREY)[..., 0], expected, atol=0.51)


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("kind", ["US", "OW"])
def test_dicom_tables(sequence, depth, kind):
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra is missing")
    # 3,000 entries from 500 on; what lies outside takes the first and the last
    table = np.rint((2**depth - 1) * np.linspace(0, 1, 3000) ** 2).astype("<u2")
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [3000, 500, depth])
    item.add_new("LUTData", kind, table.tobytes() if kind == "OW" else table.tolist())
    decoded = decode(dicom(STORED, **{sequence: [item]}), GREY)[..., 0]
    passed = np.clip((STORED - 500.0) / 2999, 0, 1) ** 2 * 255
    np.testing.assert_allclose(decoded, passed, atol=1.01)


def test_colour_dicom():
    rgb = np.random.default_rng(0).integers(0, 256, [16, 16, 3], np.uint8)
    np.testing.assert_array_equal(decode(dicom(rgb, bits=8), RGB), rgb)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS:UserWarning")
@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "width 0"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "slope of 0"),
        ({"WindowCenter": "nan", "WindowWidth": 9}, "WindowCenter of nan"),
        ({"WindowCenter": 1, "WindowWidth": "inf"}, "WindowWidth of inf"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 1}, "RescaleSlope of nan"),
        ({"RescaleSlope": 1, "RescaleIntercept": "-inf"}, "RescaleIntercept of -inf"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "-1e308"}, "without bounds"),
    ],
)
def test_dicom_that_cannot_be_used(elements, reason):
    with pytest.raises(ImageError, match=f"it: .*{reason}"):
        decode(dicom(STORED, **elements), GREY, "it")


@pytest.mark.filterwarnings("ignore:.*pixel data:UserWarning")
def test_truncated_dicom():
    data = dicom(STORED)
    with pytest.raises(ImageError, match="it: "):
        decode(data[:-200], GREY, "it")


def test_what_pydicom_can_do_without_is_no_news(tmp_path):
    padded = dicom(STORED, PixelData=STORED.tobytes() + bytes(100))
    (tmp_path / "a.dcm").write_bytes(padded)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = sources.load(tmp_path, GREY)
    assert not told
    np.testing.assert_array_equal(found.images[0], decode(dicom(STORED), GREY))


def test_dicom_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ImageError, match="more than 200 pixels"):
        decode(dicom(STORED), GREY)


def deflated(stored: np.ndarray, more: bytes = b"") -> bytes:
    """The same as `dicom`, deflated, with `more` at its end."""
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra is missing")
    plain = pydicom.dcmread(io.BytesIO(dicom(stored)))
    plain.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    plain.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    stream.seek(132)
    pydicom.filereader.read_dataset(
        stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2
    )
    start = stream.tell()
    body = zlib.decompress(content[start:], -zlib.MAX_WBITS) + more
    packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return content[:start] + packed.compress(body) + packed.flush()


def test_deflated_dicom_is_as_that_which_is_not():
    expected = decode(dicom(STORED), GREY)
    np.testing.assert_array_equal(decode(deflated(STORED), GREY), expected)


def test_deflated_dicom_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**16)
    data = deflated(STORED, bytes(2**26))
    assert len(data) < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="it: deflated from more than 1,245,184"):
            decode(data, GREY, "it")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**23


@pytest.mark.parametrize("inverted", [False, True])
def test_real_dicom(inverted):
    pytest.importorskip("pydicom", reason="the dicom extra is missing")
    name = "chest_xray_monochrome1.dcm" if inverted else "chest_xray.dcm"
    path = SHARED / "data" / "dicom" / name
    if not path.exists():
        pytest.skip("no ../shared/data/dicom")
    data = path.read_bytes()
    jpeg = Image.open(io.BytesIO(data[data.index(b"\xff\xd8\xff") :]))
    values = np.asarray(jpeg)
    decoded = decode(path, Preprocessing(1, 1024))[..., 0]
    np.testing.assert_array_equal(decoded, 255 - values if inverted else values)
