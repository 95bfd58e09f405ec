"""Image files of every kind against Pillow, and damaged or hostile ones."""

import contextlib
import io
import itertools
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from vmoe_study.data import augment
from vmoe_study.data.decoding import decode
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.image_header import ImageError
from vmoe_study.data.records import RecordError
from vmoe_study.data.spec import DataSpec


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
  """A smooth uint8 image without symmetries."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (9 + c)) + np.cos(y / (7 - c)) for c in range(channels)]
  return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str, mode: str | None = None, **options):
  """Encodes with Pillow."""
  file = io.BytesIO()
  picture = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
  picture = picture.convert(mode) if mode else picture
  picture.save(file, kind, **({"quality": 95} | options))
  return file.getvalue()


def shown(data: bytes, mode: str = "RGB") -> np.ndarray:
  """The image upright and on white, by Pillow."""
  picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if picture.has_transparency_data:
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    picture = Image.alpha_composite(white, picture.convert("RGBA"))
  return np.asarray(picture.convert(mode), int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_exact(channels):
  image = photo(20, 30, channels)
  np.testing.assert_array_equal(decode(encoded(image, "PNG"), channels), image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_kinds_agree_with_pillow(kind, mode):
  data = encoded(photo(64, 80), kind, mode)
  decoded = decode(data)
  assert decoded.dtype == np.uint8
  assert np.abs(decoded - shown(data)).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_read(kind):
  frames = [Image.fromarray(photo(16, 20) // n) for n in (1, 2, 3)]
  file = io.BytesIO()
  frames[0].save(
    file, kind, save_all=True, append_images=frames[1:], quality=95
  )
  data = file.getvalue()
  assert np.abs(decode(data) - shown(data)).max() <= 4


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg"])
def test_compressed_tiffs(compression):
  file = io.BytesIO()
  Image.fromarray(photo(24, 32)).save(file, "TIFF", compression=compression)
  data = file.getvalue()
  assert np.abs(decode(data) - shown(data)).max() <= 1


def test_tiffs_of_more_bits():
  deep = photo(24, 32, 3).astype(np.uint16) * 257
  for image in (deep, deep[..., :1]):
    data = cv2.imencode(".tif", image)[1].tobytes()
    expected = np.broadcast_to(image[..., ::-1] >> 8, (24, 32, 3))
    np.testing.assert_array_equal(decode(data), expected)
  for image in (photo(8, 8, 1).astype(np.float32), photo(8, 8, 1).astype("i4")):
    with pytest.raises(ImageError, match="must have 8 or 16"):
      decode(encoded(image, "TIFF"))


def test_other_channels_are_converted():
  assert decode(encoded(photo(16, 16), "JPEG", "L"), 3).shape == (16, 16, 3)
  assert decode(encoded(photo(16, 16), "PNG"), 1).shape == (16, 16, 1)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(kind, orientation):
  exif = Image.Exif()
  exif[0x010F] = "maker"
  exif[0x0112] = orientation
  data = encoded(photo(30, 60), kind, exif=exif)
  decoded = decode(data)
  assert decoded.flags.c_contiguous
  assert decoded.shape[:2] == ((60, 30) if orientation > 4 else (30, 60))
  assert np.abs(decoded - shown(data)).mean() < 2


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_is_no_orientation(exif):
  data = encoded(photo(10, 20), "JPEG")
  segment = b"Exif\0\0" + exif
  size = struct.pack(">H", len(segment) + 2)
  data = data[:2] + b"\xff\xe1" + size + segment + data[2:]
  assert decode(data).shape == (10, 20, 3)


def _transparent(kind, mode, **options):
  image = np.dstack([photo(24, 32), photo(24, 32, 1) * 2])
  return encoded(image, kind, mode, **options)


@pytest.mark.parametrize(
  "data",
  [
    _transparent("PNG", "RGBA"),
    _transparent("PNG", "LA"),
    _transparent("PNG", "P"),
    _transparent("WEBP", "RGBA", lossless=True),
    encoded(
      photo(24, 32), "PNG", transparency=tuple(photo(24, 32)[3, 4].tolist())
    ),
    encoded(
      photo(24, 32, 1), "PNG", transparency=int(photo(24, 32, 1)[3, 4, 0])
    ),
    encoded(photo(24, 32), "GIF", "P", transparency=3),
    encoded(photo(24, 32, 1) > 127, "PNG", transparency=0),
    _transparent("TIFF", "RGBA"),
    _transparent("TIFF", "LA"),
  ],
  ids=[
    "rgba",
    "la",
    "palette",
    "webp",
    "rgb key",
    "grey key",
    "gif",
    "bit",
    "tiff",
    "tiff la",
  ],
)
def test_transparent_images_are_laid_on_white(data):
  assert np.abs(decode(data) - shown(data)).max() <= 1
  grey = decode(data, 1)
  assert np.abs(grey[..., 0] - shown(data, "L")).max() <= 2


def test_a_hidden_colour_is_not_seen():
  image = np.zeros((4, 4, 4), np.uint8)  # Black, and fully transparent.
  assert (decode(encoded(image, "PNG")) == 255).all()


def test_of_16_bits_the_upper_8_are_kept():
  image = photo(8, 9, 1).astype(np.uint16) * 256 + 77
  data = cv2.imencode(".png", image)[1].tobytes()
  np.testing.assert_array_equal(decode(data, 1), image >> 8)


def _without_adobe(data: bytes) -> bytes:
  start = data.index(b"\xff\xee")
  (size,) = struct.unpack_from(">H", data, start + 2)
  return data[:start] + data[start + 2 + size :]


def test_cmyk_with_and_without_adobes_marker():
  picture = Image.fromarray(photo(16, 16)).convert("CMYK")
  stream = io.BytesIO()
  picture.save(stream, "JPEG", quality=95)  # Inverted, as Adobe's are.
  assert np.abs(decode(stream.getvalue()) - photo(16, 16).astype(int)).max() < 5
  stream = io.BytesIO()
  opposite = bytes(255 - ink for ink in picture.tobytes())
  opposite = Image.frombytes("CMYK", picture.size, opposite)
  opposite.save(stream, "JPEG", quality=95)
  plain = _without_adobe(stream.getvalue())
  for channels, mode in ((1, "L"), (3, "RGB")):
    expected = np.asarray(picture.convert("RGB").convert(mode), int)
    found = decode(plain, channels)
    assert np.abs(found.squeeze() - expected).max() < 5


WHOLE = encoded(photo(32, 32), "JPEG")


def test_data_behind_the_end_of_a_jpeg_is_ignored():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    tail = rng.integers(0, 256, 300_000).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(decode(WHOLE + tail), decode(WHOLE))
  for tail in (b"\xff\xda", WHOLE, WHOLE[:200], b"\0" * 10):
    np.testing.assert_array_equal(decode(WHOLE + tail), decode(WHOLE))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(progressive):
  exif, thumbnail = Image.Exif(), encoded(photo(8, 8), "JPEG")
  exif[0x9286] = thumbnail  # Holds the markers of a whole image.
  data = encoded(photo(32, 32), "JPEG", progressive=progressive, exif=exif)
  decode(data)
  frame = data.rindex(b"\xff\xc2" if progressive else b"\xff\xc0")
  scan = data.index(b"\xff\xda", frame)
  for length in range(2, len(data) - 1, 5):
    with pytest.raises(ImageError, match="truncated"):
      decode(data[:length])
    if length > scan + 20:  # Followed by another image.
      with pytest.raises(ImageError):
        decode(data[:length] + WHOLE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_cut_files_of_other_kinds_are_refused(kind):
  data = encoded(photo(32, 32), kind)
  for length in (0, 5, 20, 30, len(data) // 2, len(data) - 30):
    with pytest.raises(ImageError, match="readable"):
      decode(data[:length])


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"not an image", "not a readable"),
    (b"", "not a readable"),
    (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    (np.zeros((5, 5, 3), np.float32), "must be uint8"),
    (np.zeros((5, 5, 1), np.uint16), "must be uint8"),
    (np.zeros((5, 5, 4), np.uint8), r"\(height, width, 3\)"),
  ],
)
def test_unusable_images_are_refused(data, message):
  with pytest.raises(ImageError, match=message):
    decode(data)


def _claiming(kind: str, height: int, width: int) -> bytes:
  """A small file whose header claims this size."""
  data = bytearray(encoded(photo(8, 8), kind, **({"lossless": True}
                           if kind == "WEBP" else {})))  # fmt: skip
  if kind == "JPEG":
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
  elif kind == "PNG":
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  elif kind == "BMP":
    data[18:26] = struct.pack("<ii", width, -height)
  elif kind == "GIF":
    data[6:10] = struct.pack("<HH", width, height)
  else:
    bits = (width - 1) | (height - 1) << 14
    data[21:25] = struct.pack("<I", bits)
  return bytes(data)


@pytest.mark.parametrize(
  ("kind", "height", "width"),
  [
    ("JPEG", 65_500, 65_500),
    ("PNG", 40_000, 40_000),
    ("PNG", 2**31 - 1, 2**31 - 1),
    ("BMP", 65_500, 65_500),
    ("GIF", 65_500, 65_500),
    ("WEBP", 16_384, 16_384),
  ],
)
def test_images_that_claim_too_many_pixels(kind, height, width):
  data = _claiming(kind, height, width)
  tracemalloc.start()
  with pytest.raises(ImageError, match=f"{height} x {width} pixels.*at most"):
    decode(data)
  assert tracemalloc.get_traced_memory()[1] < 1e6
  tracemalloc.stop()
  with pytest.raises(ImageError, match=r"8 x 8 pixels.*at most 63"):
    decode(encoded(photo(8, 8), kind), max_pixels=63)


def test_long_and_thin_images_do_not_explode():
  line = encoded(np.zeros((1, 1_000_000), np.uint8), "PNG")
  with pytest.raises(ImageError, match=r"would become 256 x 256000000"):
    augment.resize_small(decode(line), 256)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
  "data",
  [
    _claiming("PNG", 40_000, 40_000),
    encoded(np.zeros((1, 1_000_000), np.uint8), "PNG"),
    encoded(photo(8, 8), "PNG")[:-20],
  ],
  ids=["huge", "thin", "cut"],
)
def test_unusable_files_are_named_or_skipped_and_counted(
  tmp_path, data, on_error
):
  folder = tmp_path / "train" / "a"
  folder.mkdir(parents=True)
  (folder / "0.png").write_bytes(encoded(photo(8, 8), "PNG"))
  (folder / "1.png").write_bytes(data)
  ops = "resize_small(300)|central_crop(300)"
  spec = DataSpec(
    "image_folder", "train", ops, 1, str(tmp_path), on_error=on_error
  )
  reader = ExampleReader(spec)
  if on_error == "raise":
    with pytest.raises(RecordError, match=r"a/1\.png: "):
      reader.read_or_mask(1)
    return
  masked = reader.read_or_mask(1)
  assert (masked["mask"], masked["skipped"]) == (0.0, 1)
  replaced = reader.read_or_next(1, np.random.default_rng(0))
  assert replaced["skipped"] == 1


def test_changed_headers_give_an_image_or_our_error():
  rng = np.random.default_rng(0)
  kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
  for kind, _ in itertools.product(kinds, range(60)):
    data = bytearray(encoded(photo(9, 12), kind))
    data[int(rng.integers(min(len(data), 200)))] ^= 1 << int(rng.integers(8))
    with contextlib.suppress(ImageError):
      assert decode(bytes(data)).dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP"])
def test_damage_is_raised_and_not_printed(kind, capfd):
  """OpenCV and libpng print what they find, once per file."""
  data = encoded(photo(20, 30), kind)
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(40):
    damaged = bytearray(data)
    damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    try:
      decode(bytes(damaged[: rng.choice([len(data), len(data) // 2])]))
    except ImageError:
      refused += 1
  assert refused >= (40 if kind == "PNG" else 10)
  assert capfd.readouterr().err == ""
