"""Png files written chunk by chunk: with 16 bits a value, which Pillow does not write for colours, and with
any other chunk.

    png(pixels_HWC, chunk(b"tIME", b"damaged"))
"""

import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels: grey, grey and alpha, RGB, RGBA


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    """uint8 or uint16 [H, W, C] -> a file; `chunks` stand before the pixels."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(pixels.dtype.newbyteorder(">")))
    header = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, 0)
    return framed(chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)))


def framed(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")
