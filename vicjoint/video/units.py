"""The units of packets: which key frames forget what was before, on which frames no other one leans. Here of
H.264, vicjoint.video.hevc of HEVC.

references = H264(context.extradata)
idr = references.add(packet)                  # packet by packet, in the order of decoding
references.free                               # places of the packets on whose frames no other one leans
references.trusted                            # at the end: whether that may be believed
"""

import re
from collections.abc import Iterator

SLICE, IDR, SEI, SPS, PPS, DELIMITER, FILLER = 1, 5, 6, 7, 8, 9, 12  # kinds of units (ITU-T H.264, table 7-1)
KNOWN = {SLICE, IDR, SEI, SPS, PPS, DELIMITER, FILLER}
CHROMA = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}  # profiles that state their colours
HEAD_BYTES = 24  # of a slice, in which its frame number stands


class References:
    """Of the packets until now. A codec's subclass tells of each one, and raises an error where it is not
    sure. prefix: bytes of the lengths in front of a packet's units; 0: they begin with 0, 0, 1."""

    def __init__(self, prefix: int):
        self.trusted = True
        self._prefix, self._packets, self._free = prefix, 0, set[int]()

    def add(self, packet) -> bool:
        """Whether decoding can begin there as at the beginning of a film, if it is a key frame."""
        self._packets += 1
        if self.trusted:
            try:
                if packet.has_sidedata("new_extradata"):
                    raise ValueError("other parameters")
                return self._add(packet, self._packets - 1)
            except (ValueError, IndexError, KeyError):
                self.trusted = False
        return self._is_clean(packet)

    def _add(self, packet, place: int) -> bool:
        raise NotImplementedError

    def _is_clean(self, packet) -> bool:
        return True

    @property
    def free(self) -> list[int]:
        return sorted(self._free)


class H264(References):
    """trusted: whether every packet until now is one whole frame of units that are known, and the frames that
    others may lean on are numbered without a gap. Then decoding without any of the others changes nothing:
    the decoder sees the same references under the same numbers. Interlaced films, damaged ones, several
    parameter sets and layers are not trusted."""

    def __init__(self, extradata: bytes | None):
        super().__init__(length_bytes(extradata))
        self._sps: bytes | None = None
        self._number_bits = 0
        self._last: int | None = None  # frame number of the last frame that others may lean on
        for unit in _of_extradata(extradata):
            if unit[0] & 31 == SPS:
                self._use(unit)

    def _add(self, packet, place: int) -> bool:
        units = list(units_in(bytes(packet), self._prefix))
        slices = [unit for unit in units if unit[0] & 31 in (SLICE, IDR)]
        for unit in units:
            if unit[0] & 128 or unit[0] & 31 not in KNOWN:
                raise ValueError("another kind of unit")
            if unit[0] & 31 == SPS:
                self._use(unit)
        kinds, ranks = {unit[0] & 31 for unit in slices}, {unit[0] & 96 > 0 for unit in slices}
        # a slice that begins with bit 1 begins at the first block of a frame
        begins = [bool(unit[1] & 128) for unit in slices]
        if len(kinds) != 1 or len(ranks) != 1 or not begins[0] or any(begins[1:]) or self._sps is None:
            raise ValueError("not one whole frame")
        idr, leaned_on = kinds == {IDR}, ranks == {True}
        bits = Bits(slices[0][1 : 1 + HEAD_BYTES])
        for _ in ("first block", "kind of slice", "PPS"):
            bits.golomb()
        number = bits.number(self._number_bits)
        expected = 0 if idr else ((-1 if self._last is None else self._last) + 1) % (1 << self._number_bits)
        if number != expected or (idr and not leaned_on) or (self._last is None and not idr):
            raise ValueError("a gap between references")
        if leaned_on:
            self._last = number
        elif all(unit[0] & 31 not in (SPS, PPS) for unit in units):
            self._free.add(place)
        return idr

    def _use(self, sps: bytes) -> None:
        """Remember how frames are numbered. Raises ValueError where that changes or is not simple."""
        if self._sps is not None and self._sps != sps:
            raise ValueError("several parameter sets")
        if self._sps is None:
            try:
                self._number_bits = _number_bits(sps)
            except (ValueError, IndexError):
                self.trusted = False
            self._sps = sps

    def _is_clean(self, packet) -> bool:
        return packet.is_keyframe and is_idr(packet, self._prefix)


class Bits:
    """Reads numbers from bytes. Raises ValueError at their end."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # what keeps a unit from looking like the beginning of one
        self._bits, self._at = "".join(f"{byte:08b}" for byte in data), 0

    def number(self, bits: int) -> int:
        self._at += bits
        if self._at > len(self._bits):
            raise ValueError("no more bits")
        return int(self._bits[self._at - bits : self._at], 2) if bits else 0

    def golomb(self) -> int:
        """An Exp-Golomb code, unsigned."""
        zeros = self._bits.index("1", self._at) - self._at  # ValueError where there is none
        self._at += zeros
        return self.number(zeros + 1) - 1


def _number_bits(sps: bytes) -> int:
    """Of a frame's number. Raises ValueError where frames may be fields, or numbers may have gaps."""
    profile, bits = sps[1], Bits(sps[4:])
    bits.golomb()  # its own name
    if profile in CHROMA:
        chroma = bits.golomb()
        if chroma == 3 and bits.number(1):
            raise ValueError("three pictures in one")
        bits.golomb(), bits.golomb(), bits.number(1)  # depths, lossless
        if bits.number(1):
            for place in range(12 if chroma == 3 else 8):
                _scaling(bits, 16 if place < 6 else 64)
    number_bits = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.number(1), bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # references
    gaps = bits.number(1)
    bits.golomb(), bits.golomb()  # width, height
    if gaps or not bits.number(1) or number_bits > 16:
        raise ValueError("gaps or fields")
    return number_bits


def _scaling(bits: Bits, count: int) -> None:
    """Pass over a list of scaling factors."""
    last = following = 8
    if bits.number(1):
        for _ in range(count):
            if following:
                code = bits.golomb()
                following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
            last = following or last


def length_bytes(extradata: bytes | None) -> int:
    """Of the lengths in front of a packet's units, in mp4 and mkv; 0: they begin with 0, 0, 1."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def units_in(data: bytes, prefix: int) -> Iterator[bytes]:
    """Raises ValueError where they do not fill the packet."""
    if not prefix:
        first, *found = re.split(rb"\x00\x00\x01", data)
        if first.strip(b"\0"):
            raise ValueError("does not begin with a unit")
        yield from filter(None, (unit.rstrip(b"\0") for unit in found))
        return
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + prefix], "big")
        at += prefix
        if not 0 < size <= len(data) - at:
            raise ValueError("a unit that goes beyond its packet")
        yield data[at : at + size]
        at += size


def _of_extradata(extradata: bytes | None) -> Iterator[bytes]:
    """Parameter sets; those that are cut off are left out: the decoder refuses them."""
    if not length_bytes(extradata):
        yield from filter(None, (unit.rstrip(b"\0") for unit in re.split(rb"\x00\x00\x01", extradata or b"")))
        return
    assert extradata is not None
    at = 6
    for _ in range(extradata[5] & 31 if len(extradata) > 5 else 0):
        size = int.from_bytes(extradata[at : at + 2], "big")
        if unit := extradata[at + 2 : at + 2 + size]:
            yield unit
        at += 2 + size


def is_idr(packet, prefix: int) -> bool:
    """Whether a key frame is an IDR picture, which forgets what was before; others are recovery points."""
    data, at = memoryview(packet), 0
    if not prefix:
        kinds = (found[1][0] & 31 for found in re.finditer(rb"\x00\x00\x01(.)", data, re.DOTALL))
        return next((kind for kind in kinds if kind in (SLICE, IDR)), SLICE) == IDR
    while at + prefix < len(data):
        kind = data[at + prefix] & 31
        if kind in (SLICE, IDR):
            return kind == IDR
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
    return False
