"""Reads the headers of image files, before they are decoded.

The headers give the size of the image, reveal truncated files, and hold what
OpenCV ignores or gets wrong.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

# The next marker of a JPEG. Within a scan, 0xFF is followed by a zero or a
# restart marker; further 0xFF are padding.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_ALONE = {0x01, 0xD8}  # Markers without a length.
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"
# Tags of a TIFF file, and of the EXIF data in files of other kinds.
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_SHORT, _LONG = 3, 4


class ImageError(ValueError):
  """An image cannot be decoded or used."""


@dataclasses.dataclass
class ImageHeader:
  """The header of an image file.

  Attributes:
    height, width: as stored, before the orientation is applied.
    orientation: EXIF orientation, 1 (upright) to 8.
    has_alpha: whether pixels may be transparent.
    transparent_grey: grey value of transparent pixels in a grey PNG.
    bit_depth: bits per channel of a PNG.
    is_plain_cmyk: whether it is a four-channel JPEG whose channels, unlike
      Adobe's, are not inverted.
    is_tiff: whether it is a TIFF; then only its size is read.
  """

  height: int = 0
  width: int = 0
  orientation: int = 1
  has_alpha: bool = False
  transparent_grey: int | None = None
  bit_depth: int = 8
  is_plain_cmyk: bool = False
  is_tiff: bool = False


def read_header(data: bytes) -> ImageHeader:
  """Reads the header of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

  Raises:
    ImageError: the file is of another kind, or a truncated JPEG.
  """
  for magic, read in (
    (b"\xff\xd8", _read_jpeg),
    (_PNG, _read_png),
    (b"RIFF", _read_webp),
    (b"GIF8", _read_gif),
    (b"BM", _read_bmp),
    (b"II*\0", _read_tiff),
    (b"MM\0*", _read_tiff),
  ):
    if data.startswith(magic):
      try:
        header = read(data)
      except (struct.error, IndexError):
        break
      if header.height and header.width:
        return header
  raise unreadable(data)


def unreadable(data: bytes) -> ImageError:
  """Makes the error for a file that is not an image or is damaged."""
  return ImageError(
    f"{len(data)} bytes that are not a readable JPEG, PNG, WebP, GIF, BMP or "
    "TIFF file. Replace the file."
  )


def _read_jpeg(data: bytes) -> ImageHeader:
  """Reads the markers up to the end of the image; the rest is ignored.

  OpenCV fills missing parts with grey and only warns, so a truncated image is
  refused here.
  """
  header, is_adobe, channels, scanned, position = ImageHeader(), False, 3, 0, 2
  while match := _MARKER.search(data, position):
    marker, position = match[1][0], match.end()
    if marker in (_START, _END):
      break
    if marker in _ALONE:
      continue
    length = int.from_bytes(data[position : position + 2], "big")
    if position + max(length, 2) > len(data):
      raise _truncated()
    segment = data[position + 2 : position + length]
    position += length
    if marker in _FRAMES:
      if header.height:  # Of another image, after the cut.
        raise _truncated()
      header.height, header.width, channels = struct.unpack_from(
        ">xHHB", segment
      )
    elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
      header.orientation = _orientation(segment[6:])
    elif marker == 0xEE and segment.startswith(b"Adobe"):
      is_adobe = True
    scanned += marker == _SCAN
  if not match or match[1][0] != _END or not scanned:
    raise _truncated()
  header.is_plain_cmyk = channels == 4 and not is_adobe
  return header


def _truncated() -> ImageError:
  return ImageError("the JPEG file is truncated. Replace the file.")


def _read_png(data: bytes) -> ImageHeader:
  if not _is_intact_png(data):
    raise unreadable(data)
  header = ImageHeader()
  colour = 0
  for kind, content in _chunks(data, len(_PNG), ">I4s", 4):
    if kind == b"IHDR" and not header.width:
      header.width, header.height, header.bit_depth, colour = (
        struct.unpack_from(">IIBB", content)
      )
      header.has_alpha = colour in (4, 6)
    elif kind == b"tRNS":
      header.has_alpha = True
      if colour == 0:
        (header.transparent_grey,) = struct.unpack_from(">H", content)
    elif kind == b"eXIf":
      header.orientation = _orientation(content)
  return header


def _read_webp(data: bytes) -> ImageHeader:
  header = ImageHeader()
  for kind, content in _chunks(data, 12, "<4sI", 0):
    if kind == b"VP8X":
      header.has_alpha = bool(content[0] & 0x10)
      header.width = 1 + int.from_bytes(content[4:7], "little")
      header.height = 1 + int.from_bytes(content[7:10], "little")
    elif kind == b"VP8L" and not header.width:
      (bits,) = struct.unpack_from("<xI", content)
      header.width = 1 + (bits & 0x3FFF)
      header.height = 1 + (bits >> 14 & 0x3FFF)
      header.has_alpha = bool(bits >> 28 & 1)
    elif kind == b"VP8 " and not header.width:
      width, height = struct.unpack_from("<6xHH", content)
      header.width, header.height = width & 0x3FFF, height & 0x3FFF
    elif kind == b"EXIF":
      header.orientation = _orientation(content.removeprefix(b"Exif\0\0"))
  return header


def _read_gif(data: bytes) -> ImageHeader:
  width, height = struct.unpack_from("<HH", data, 6)
  return ImageHeader(height, width, has_alpha=True)


def _read_bmp(data: bytes) -> ImageHeader:
  is_old = struct.unpack_from("<I", data, 14) == (12,)  # Of OS/2.
  width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
  return ImageHeader(abs(height), abs(width))


def _read_tiff(data: bytes) -> ImageHeader:
  tags = _tags(data)
  return ImageHeader(tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0), is_tiff=True)


def _is_intact_png(data: bytes) -> bool:
  """Whether all required chunks are complete and match their checksums.

  The decoder would report such errors on stderr, once per file.
  """
  position = len(_PNG)
  while position + 8 <= len(data):
    length, kind = struct.unpack_from(">I4s", data, position)
    end = position + 8 + length
    if end + 4 > len(data):
      return False
    (checksum,) = struct.unpack_from(">I", data, end)
    is_needed = kind[:1].isupper()
    if (
      is_needed and zlib.crc32(memoryview(data)[position + 4 : end]) != checksum
    ):
      return False
    if kind == b"IEND":
      return True
    position = end + 4
  return False


def _chunks(
  data: bytes, position: int, form: str, checksum: int
) -> Iterator[tuple[bytes, bytes]]:
  """Kinds and contents of the chunks of a PNG or WebP file."""
  while position + 8 <= len(data):
    first, second = struct.unpack_from(form, data, position)
    kind, length = (second, first) if checksum else (first, second)
    start = position + 8
    # Only small chunks matter; image data are not copied.
    yield kind, data[start : start + min(length, 1 << 16)]
    position = start + length + (checksum or length % 2)


def _orientation(exif: bytes) -> int:
  """The orientation in EXIF data; 1 if it is missing or invalid."""
  orientation = _tags(exif).get(_ORIENTATION, 1)
  return orientation if 1 <= orientation <= 8 else 1


def _tags(tiff: bytes) -> dict[int, int]:
  """The whole numbers in the first directory of a TIFF file or of EXIF."""
  order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
  found: dict[int, int] = {}
  if order is None:
    return found
  try:
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
      form = {_SHORT: "H", _LONG: "I"}.get(kind)
      if form:
        (found[tag],) = struct.unpack_from(f"{order}{form}", tiff, entry + 8)
  except struct.error:
    pass
  return found
