"""Decodes PNG and JPEG files of a known shape, without the interpretation of headers in Python, which costs most.

Pillow decodes in C, but `Image.open` reads every segment in Python first: for 32x32 images that takes longer than the
decoding. The common kinds go straight to Pillow's decoders; every other file takes `Image.open`.
"""

import io
import struct

import numpy as np

Shape = tuple[int, int, int]

PNG_START = b"\x89PNG\r\n\x1a\n"
MODES = {1: "L", 3: "RGB"}
"""Channels -> Pillow's mode."""


def decode_image(data: bytes, shape: Shape) -> np.ndarray:
    """Decodes an image file of (h, w, c) pixels as uint8.

    Raises: ValueError where the shape is another; ValueError or OSError where the file is damaged.
    """
    from PIL import Image

    height, width, channels = shape
    if (idat := _plain_png(data, shape)) is not None:
        # "zip" is Pillow's decoder of PNG's compressed rows
        image = Image.frombytes(MODES[channels], (width, height), idat, "zip", MODES[channels])
        return np.asarray(image).reshape(shape)
    if channels in MODES and _jpeg_shape(data) == shape:
        image = Image.frombytes(MODES[channels], (width, height), data, "jpeg", MODES[channels], "")
        return np.asarray(image).reshape(shape)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image, np.uint8).reshape(shape)


def _plain_png(data: bytes, shape: Shape) -> bytes | None:
    """Finds the compressed pixels of a grey or RGB file of 8 bits without interlacing; None of any other.

    [Portable Network Graphics Specification, sec. 5 and 11.2]
    """
    if data[:8] != PNG_START or len(data) < 33:
        return None
    # the content of IHDR: width, height, bits, colour type, compression, filter, interlacing
    width, height, *kind = struct.unpack_from(">II5B", data, 16)
    colour_type = {1: 0, 3: 2}.get(shape[2])
    if (height, width) != shape[:2] or kind != [8, colour_type, 0, 0, 0]:
        return None
    # behind the signature (8 bytes) and IHDR (25)
    parts, position = [], 33
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if name == b"IDAT":
            parts.append(data[position + 8 : position + 8 + length])
        elif name == b"IEND":
            return b"".join(parts)
        # length, name and checksum take 12 bytes
        position += 12 + length
    return None


def _jpeg_shape(data: bytes) -> Shape | None:
    """(h, w, c) from a JPEG file's frame header; None where there is none.   [ITU-T T.81, B.2.2]"""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        if data[position + 1] in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            height, width, channels = struct.unpack_from(">HHB", data, position + 5)
            return height, width, channels
        # the length counts its own two bytes, and not the marker's
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
