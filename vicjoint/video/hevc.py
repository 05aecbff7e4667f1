"""Which pictures of an HEVC film no other one leans on: those that no set of references names.

references = HEVC(context.extradata)
references.add(packet)                        # packet by packet, in the order of decoding
references.free, references.trusted           # as vicjoint.video.units says
"""

from collections.abc import Iterator

from vicjoint.video.units import Bits, References, units_in

# kinds of units (ITU-T H.265, table 7-1)
SLICES, KEYS, IDR = {*range(10), 19, 20, 21}, {19, 20, 21}, {19, 20}
FREE = {0, 2, 4, 6, 8}  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N
COUNTED = {1, 3, 5, 19, 20, 21}  # in the lowest layer: numbers of others are counted from theirs
SPS, PPS = 33, 34
# and video parameters, delimiter, filler, what is said beside the pictures
KNOWN = SLICES | {SPS, PPS, 32, 35, 38, 39, 40}
HEAD_BYTES = 96  # of a slice, in which its references stand
Around = list[int]
"""The references of a picture: their numbers in order of presentation, less its own; those before it, the
nearest first, then those after it, the nearest first."""


class HEVC(References):
    """A decoder keeps and uses no picture but those that the set of references of each one names. So one that
    is in no set until the next IDR picture may be left out, if it is of a kind from which the numbers of
    others are not counted, either. Several parameter sets, layers of pictures, long-term references, lists of
    scaling factors and pictures that are not shown are not trusted."""

    def __init__(self, extradata: bytes | None):
        extradata = extradata or b""
        listed = len(extradata) > 22 and extradata[0] == 1
        super().__init__((extradata[21] & 3) + 1 if listed else 0)
        self._sps: bytes | None = None
        self._pps: dict[int, tuple[bytes, int]] = {}  # of each name: itself, bits to pass over in a slice
        self._number_bits, self._sets = 0, list[Around]()
        self._last: int | None = None  # number of the last picture from which others are counted
        self._places: dict[int, int] = {}  # of pictures since the last IDR picture, by number
        try:
            for unit in _of_extradata(extradata) if listed else units_in(extradata, 0):
                self._use(unit)
        except (ValueError, IndexError):
            self.trusted = False

    def _add(self, packet, place: int) -> bool:
        units = list(units_in(bytes(packet), self._prefix))
        for unit in units:
            self._use(unit)
        slices = [unit for unit in units if _kind(unit) in SLICES]
        kinds = {_kind(unit) for unit in slices}
        # a slice that begins with bit 1 begins at the first block of a picture
        begins = [bool(unit[2] & 128) for unit in slices]
        if len(kinds) != 1 or not begins[0] or any(begins[1:]):
            raise ValueError("not one whole picture")
        (kind,) = kinds
        number, around = self._head(slices[0], kind)
        if number in self._places:
            raise ValueError("a number twice")
        self._free.difference_update(self._places.get(number + other) for other in around)
        self._places[number] = place
        if kind in FREE and all(_kind(unit) not in (SPS, PPS) for unit in units):
            self._free.add(place)
        return kind in KEYS

    def _head(self, unit: bytes, kind: int) -> tuple[int, Around]:
        """The number of a picture in order of presentation, and its references, from its first slice."""
        bits = Bits(unit[2 : 2 + HEAD_BYTES])
        bits.number(1)
        if kind in KEYS and bits.number(1):
            raise ValueError("pictures that are not shown any more")
        bits.number(self._pps[bits.golomb()][1])
        bits.golomb()  # kind of slice
        if kind in IDR:
            self._last, self._places = 0, {}
            return 0, []
        number = bits.number(self._number_bits)
        if self._last is None and kind not in KEYS:
            raise ValueError("no beginning")
        if self._last is not None:  # that with these last bits which is nearest to the last one
            most = (1 << self._number_bits - 1) - 1
            number = self._last + (number - self._last + most) % (1 << self._number_bits) - most
        if bits.number(1):
            around = self._sets[bits.number((len(self._sets) - 1).bit_length())]
        else:
            around = _around(bits, self._sets, is_last=True)
        if kind in COUNTED and unit[1] & 7 == 1:
            self._last = number
        return number, around

    def _use(self, unit: bytes) -> None:
        """Remember what parameter sets say. Raises ValueError where that changes or is not simple."""
        kind = _kind(unit)
        if unit[0] & 129 or unit[1] & 248 or kind not in KNOWN:
            raise ValueError("another kind of unit, or a layer")
        if kind == SPS and self._sps != unit:
            if self._sps is not None:
                raise ValueError("several parameter sets")
            self._sps = unit
            self._number_bits, self._sets = _parameters(unit)
        if kind == PPS:
            bits = Bits(unit[2 : 2 + HEAD_BYTES])
            name, _, _, hides = bits.golomb(), bits.golomb(), bits.number(1), bits.number(1)
            if hides or self._pps.setdefault(name, (unit, bits.number(3)))[0] != unit:
                raise ValueError("pictures that are not shown, or parameters that change")


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63


def _of_extradata(extradata: bytes) -> Iterator[bytes]:
    """Parameter sets of an hvcC box (ISO 14496-15)."""
    at = 23
    for _ in range(extradata[22]):
        count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def _parameters(sps: bytes) -> tuple[int, list[Around]]:
    """(bits of a picture's number, sets of references that slices choose from)."""
    bits = Bits(sps[2:])
    bits.number(4)
    below = bits.number(3)  # temporal layers below the highest
    bits.number(1 + 96)  # profile and level, then those of the layers below
    said = [bits.number(2) for _ in range(8 if below else 0)]
    for flags in said[:below]:
        bits.number((88 if flags & 2 else 0) + (8 if flags & 1 else 0))
    bits.golomb()
    if bits.golomb() == 3 and bits.number(1):
        raise ValueError("three pictures in one")
    bits.golomb(), bits.golomb()  # width, height
    for _ in range(4 if bits.number(1) else 0):
        bits.golomb()  # what is cut off
    bits.golomb(), bits.golomb()  # depths
    number_bits = bits.golomb() + 4
    for _ in range(3 * (below + 1 if bits.number(1) else 1)):
        bits.golomb()  # room for pictures
    for _ in range(6):
        bits.golomb()  # sizes of blocks
    if bits.number(1):
        raise ValueError("lists of scaling factors")
    bits.number(2)
    if bits.number(1):
        bits.number(8), bits.golomb(), bits.golomb(), bits.number(1)
    sets: list[Around] = []
    for _ in range(bits.golomb()):
        sets.append(_around(bits, sets, is_last=False))
    if bits.number(1) or number_bits > 16:
        raise ValueError("long-term references")
    return number_bits, sets


def _around(bits: Bits, sets: list[Around], is_last: bool) -> Around:
    """A set, which may be told by its difference from one of those before it. is_last: in a slice."""
    if sets and bits.number(1):
        like = sets[-1 - bits.golomb()] if is_last else sets[-1]
        sign = -1 if bits.number(1) else 1
        shift = sign * (bits.golomb() + 1)
        # each is used, or later, or not any more
        found = [other + shift for other in [*like, 0] if bits.number(1) or bits.number(1)]
    else:
        counts, found = (bits.golomb(), bits.golomb()), []
        for sign, count in zip((-1, 1), counts):
            distance = 0
            for _ in range(count):
                distance += bits.golomb() + 1
                bits.number(1)
                found.append(sign * distance)
    return sorted((n for n in found if n < 0), reverse=True) + sorted(n for n in found if n > 0)
