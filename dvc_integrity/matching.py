"""Which patterns bad bytes fit.

Pure judgement: the same contents and the same knowledge give the same matches. What can be
proven is proven (a digest that is known, bytes that are equal after a transformation); what
is only likely says so. Each match tells the share of the differing bytes that it explains.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import cast

from dvc_integrity.damage import (
    BLOCK_BYTES,
    LINE_BYTES,
    PAGE_BYTES,
    PAGES_KEPT,
    SECTOR_BYTES,
    Content,
    Damage,
)
from dvc_integrity.digest import Digest
from dvc_integrity.errors import printable
from dvc_integrity.patterns import Elsewhere, Known, Match, Pattern, match
from dvc_integrity.transformations import are_same, hashes_to, kind_of, transformations, undone

__all__ = ["PARTS", "find_matches", "guess"]

MIB = 1 << 20

PARTS = {
    100 * MIB: "google-cloud-storage",
    50 * MIB: "s3fs",
    16 * MIB: "the MinIO client",
    15 * MIB: "s3cmd",
    8 * MIB: "boto3 and the AWS CLI",
    5 * MIB: "rclone; the smallest part of S3",
}
"""Sizes of the parts of a multipart upload, and whose default each is; the largest first."""

WHOLE_SHARE = 0.9
"""Differences that span this share of the content concern all of it."""

DENSE_SHARE = 0.5
"""Where this share of the bytes of a stretch differs, the stretch as a whole does."""

STRAY_SHARE = 0.1
"""Fewer bytes than this share that differ leave a content its length apart the same."""

FEWEST_FLIPS = 3
"""So many flips of one bit position are no chance: two would be, in one case of eight."""

NAMED = 3
"""Pages or paths that a text names at most."""

WORD_BYTES = 8

_ZEROS = bytes(BLOCK_BYTES)


def find_matches(bad: Content, good: Content, damage: Damage, known: Known) -> tuple[Match, ...]:
    """Return the patterns that the damage fits; those that explain most come first.

    Raises
    ------
    OSError
        If a content cannot be read.
    """
    if not damage.total:
        return ()
    matches = [*_known(known, bad.size), *_transformed(bad, good, damage)]
    ends = [*_ends(damage, bad)]
    matches += [*_by_counts(damage, good), *_repeated(bad, good, damage)]
    if not _explain(damage, matches, ends) and not (ends and _is_aligned_at_end(damage)):
        matches += _shifted(bad, good, damage)
    if not _explain(damage, matches, ends):
        matches.append(_fallback(bad, good, damage, ends))
    return _in_order([*ends, *matches])


def _is_aligned_at_end(damage: Damage) -> bool:
    """Return whether the last page that both have is the same in both: nothing moved."""
    return damage.last is None or damage.common - damage.last > PAGE_BYTES


def _explain(damage: Damage, matches: Sequence[Match], ends: Sequence[Match]) -> bool:
    """Return whether one pattern, together with what is wrong at the end, explains everything."""
    rest = damage.bytes if ends else damage.total
    shares = (match.share for match in matches if match.share is not None)
    return round(max(shares, default=0.0) * damage.total) >= rest


def guess(bad: Content, expected: Digest, size: int | None, known: Known) -> tuple[Match, ...]:
    """Return what can be told of bad bytes without a good copy.

    Parameters
    ----------
    bad
        The bytes.
    expected
        The committed digest.
    size
        The committed size in bytes; None where DVC records none.
    known
        What is known about the digest that was found.

    Raises
    ------
    OSError
        If the bytes cannot be read.
    """
    matches = [*_known(known, bad.size)]
    if size is not None and bad.size < size:
        matches.append(match(Pattern.TRUNCATED, None, _cut_at(bad.size, size)))
    if size is not None and bad.size > size and hashes_to(expected, bad.chunks(0, size)):
        matches.append(match(Pattern.APPENDED, 1, _past_end(bad, size)))
    for name, detail, read in undone(bad):
        if hashes_to(expected, read()):
            proof = f"{detail}; the committed digest proves it"
            matches.append(match(Pattern(name), 1, proof))
            break
    pages, tail = _zero_pages(bad)
    if pages and not any(each.share == 1 for each in matches):
        end = f", the last {tail:,} of them at the end" if tail else ""
        detail = f"{pages:,} pages of 4 KiB hold only zeros{end}; they may be meant to"
        matches.append(match(Pattern.ZEROED, None, detail))
    return _in_order(matches)


def _in_order(matches: Sequence[Match]) -> tuple[Match, ...]:
    order = list(Pattern)
    return tuple(sorted(matches, key=lambda each: (-(each.share or 0), order.index(each.pattern))))


def _known(known: Known, size: int) -> Iterator[Match]:
    if known.version is not None:
        sha, date, subject, _ = known.version
        detail = f'it is the version of commit {sha[:12]} ({date[:10]}, "{printable(subject)}")'
        yield match(Pattern.OLDER_VERSION, 1, detail)
    if known.elsewhere and size:  # all empty files are alike
        yield match(Pattern.SWAPPED, 1, _whose(known.elsewhere))


def _whose(elsewhere: tuple[Elsewhere, ...]) -> str:
    named = [f"'{printable(each.path)}'{_EXCHANGED[each.holds_ours]}" for each in elsewhere[:NAMED]]
    more = len(elsewhere) - len(named)
    rest = f" and {more:,} paths more" if more > 0 else ""
    return f"its bytes are the committed ones of {', '.join(named)}{rest}"


_EXCHANGED = {
    True: " (which holds the bytes of this path: the two were exchanged)",
    False: " (which does not hold the bytes of this path)",
    None: "",
}


def _transformed(bad: Content, good: Content, damage: Damage) -> Iterator[Match]:
    if damage.bits == 1:
        return  # no tool does that, so nothing need be read again
    for name, detail in transformations(bad, good, damage.first):
        yield match(Pattern(name), 1, detail)


# By what was counted -------------------------------------------------------------------------


def _by_counts(damage: Damage, good: Content) -> Iterator[Match]:
    if damage.bits == 1:
        yield _single_bit(damage, good)
    elif damage.bytes:
        yield from _zeroed(damage)
        yield from _bit_position(damage)
        yield from _burst(damage)


def _single_bit(damage: Damage, good: Content) -> Match:
    at = cast("int", damage.first)
    bit = damage.flips.index(1)
    was = good.read_at(at, 1)[0] >> bit & 1
    where = f"page {at // PAGE_BYTES:,}, byte {at % PAGE_BYTES:,} of it"
    detail = f"bit {bit} of byte {at:,} ({where}) is {1 - was} instead of {was}"
    return match(Pattern.SINGLE_BIT, damage.bytes / damage.total, detail)


def _ends(damage: Damage, bad: Content) -> Iterator[Match]:
    """Yield what is wrong with the length, where the rest is good but for stray bytes."""
    if damage.bytes > STRAY_SHARE * damage.common:
        return
    if damage.lacking:
        share = damage.lacking / damage.total
        cause = "" if damage.common else _EMPTY
        detail = _cut_at(damage.bad_bytes, damage.good_bytes)
        yield match(Pattern.TRUNCATED, share, detail, cause=cause)
    if damage.surplus and damage.good_bytes:
        share = damage.surplus / damage.total
        yield match(Pattern.APPENDED, share, _past_end(bad, damage.good_bytes))


_EMPTY = (
    "The file was created and never written: a full disk, a crash before the data reached it, or a "
    "program that opened it for writing and died."
)


def _cut_at(size: int, good_size: int) -> str:
    lost = f"it ends at byte {size:,}; {good_size - size:,} bytes lack"
    if not size:
        return f"it is empty; {good_size:,} bytes lack"
    parts = [(part, whose) for part, whose in PARTS.items() if size % part == 0]
    if parts:
        named = ", or ".join(
            f"{size // part:,} parts of {part // MIB} MiB ({whose})" for part, whose in parts
        )
        return f"{lost}. The end is a boundary of multipart transfers: {named}"
    if size % MIB == 0:
        return f"{lost}. The end is a multiple of 1 MiB: {size // MIB:,}"
    if size % PAGE_BYTES == 0:
        return f"{lost}. The end is the end of a page of 4 KiB: {size // PAGE_BYTES:,} pages"
    return f"{lost}. The end is no multiple of a page or of a part of a transfer"


def _past_end(bad: Content, end: int) -> str:
    """Say what the bytes past the end are like."""
    added = bad.size - end
    detail = f"{added:,} bytes follow the end at {end:,}"
    if all(map(_ZEROS.startswith, bad.chunks(end))):
        whole = "; the size is then whole pages" if bad.size % PAGE_BYTES == 0 else ""
        return f"{detail}, all zero: padding{whole}"
    if bad.read_at(end, len(b"\r\n") + 1) in {b"\n", b"\r\n"}:
        return f"{detail}: a line end, as editors add it"
    if added <= end and are_same(bad.chunks(end), bad.chunks(0, added)):
        return f"{detail}, the same as its beginning: it was written a second time"
    return detail


def _zeroed(damage: Damage) -> Iterator[Match]:
    count, unit = damage.zeroed_pages, "pages of 4 KiB"
    if damage.zeroed_sectors > count:
        count, unit = damage.zeroed_sectors, "sectors of 512 B"
    if count:
        last = cast("int", damage.last)
        to_end = last // PAGE_BYTES == (damage.common - 1) // PAGE_BYTES
        end = ", up to the end" if to_end and damage.range_count == 1 else ""
        at = f"from byte {cast('int', damage.first):,} to {last:,}{end}"
        detail = f"whole {unit} are zero where {count:,} bytes should not be, {at}"
        yield match(Pattern.ZEROED, count / damage.total, detail)
    elif damage.zeroed == damage.bytes and damage.range_count == 1 and damage.span > WORD_BYTES:
        detail = f"{damage.span:,} bytes from byte {damage.first:,} are zero, not whole sectors"
        yield match(Pattern.ZEROED, damage.bytes / damage.total, detail)


def _bit_position(damage: Damage) -> Iterator[Match]:
    if damage.bits < FEWEST_FLIPS or damage.bits not in damage.flips or damage.stride == 1:
        return
    bit = damage.flips.index(damage.bits)
    ways = {0: " (all became 0)", damage.bits: " (all became 1)"}.get(damage.bits_set, "")
    detail = (
        f"bit {bit} flipped in {damage.bits:,} bytes{ways}, all a multiple of "
        f"{damage.stride:,} bytes apart"
    )
    if damage.stride % WORD_BYTES == 0:
        detail += ": the same bit of a 64-bit word"
    yield match(Pattern.BIT_POSITION, damage.bytes / damage.total, detail)


def _burst(damage: Damage) -> Iterator[Match]:
    if damage.span > PAGE_BYTES or damage.span >= WHOLE_SHARE * damage.common:
        return
    first, last = cast("int", damage.first), cast("int", damage.last)
    unit = next(unit for unit in _UNITS if damage.span <= unit)
    aligned = [each for each in _UNITS if first // each == last // each]
    detail = (
        f"{damage.bits:,} bits within {damage.span:,} byte{'s' * (damage.span > 1)} from byte "
        f"{first:,}: "
        f"it fits {_UNITS[unit]}"
    )
    if not aligned:
        detail += ", but crosses the border of two pages"
    elif aligned[0] == unit:
        whole = damage.span == unit
        detail += f", aligned: {'it is' if whole else 'it lies in'} number {first // unit:,}"
    else:
        detail += f" in length, and lies across two of them in {_UNITS[aligned[0]]}"
    yield match(Pattern.BURST, damage.bytes / damage.total, detail)


_UNITS = {
    LINE_BYTES: "a cache line of 64 B",
    SECTOR_BYTES: "a sector of 512 B",
    PAGE_BYTES: "a page of 4 KiB",
}


# By looking at pages, and at both ends -------------------------------------------------------


def _repeated(bad: Content, good: Content, damage: Damage) -> Iterator[Match]:
    """Yield the pages that hold what another page of the good content should."""
    if not 0 < damage.pages <= PAGES_KEPT:
        return
    wanted: dict[bytes, list[int]] = {}
    for number in damage.page_numbers:
        page = bad.read_at(number * PAGE_BYTES, PAGE_BYTES)
        if len(page) == PAGE_BYTES and len(set(page)) > 1:  # a filled page is like many others
            wanted.setdefault(page, []).append(number)
    origins = _origins(wanted, good)
    if not origins:
        return
    explained = sum(_differing(bad, good, number) for number in origins)
    named = [_copied(number, origins[number]) for number in sorted(origins)[:NAMED]]
    more = len(origins) - len(named)
    detail = f"{'; '.join(named)}{f'; and {more:,} pages more' if more else ''} (of 4 KiB)"
    yield match(Pattern.REPEATED_PAGE, explained / damage.total, detail)


def _copied(number: int, source: int) -> str:
    before = ", the one before it" if source == number - 1 else ""
    return f"page {number:,} holds what belongs into page {source:,}{before}"


def _origins(wanted: dict[bytes, list[int]], good: Content) -> dict[int, int]:
    """Return, for damaged pages, the page of the good content that each is equal to."""
    origins: dict[int, int] = {}
    number = 0
    for chunk in good.chunks() if wanted else ():
        for at in range(0, len(chunk), PAGE_BYTES):
            for copy in wanted.get(chunk[at : at + PAGE_BYTES], ()):
                if copy not in origins or number == copy - 1:
                    origins[copy] = number
            number += 1
    return origins


def _differing(bad: Content, good: Content, page: int) -> int:
    pair = (each.read_at(page * PAGE_BYTES, PAGE_BYTES) for each in (bad, good))
    return sum(one != other for one, other in zip(*pair, strict=False))


def _shifted(bad: Content, good: Content, damage: Damage) -> Iterator[Match]:
    """Yield one edit that changed the length, if all before and after it is the same."""
    if bad.size == good.size or damage.first is None:
        return
    start = damage.first
    end = _common_end(bad, good, damage.common - start)
    removed, added = good.size - start - end, bad.size - start - end
    if start + end < DENSE_SHARE * damage.common:
        return
    kept = f"all {start:,} bytes before and {end:,} after are the same"
    if not removed:
        detail = f"{added:,} bytes were inserted at byte {start:,}; {kept}"
    elif not added:
        detail = f"{removed:,} bytes at byte {start:,} are gone; {kept}"
    else:
        detail = f"{added:,} bytes stand at byte {start:,} instead of {removed:,}; {kept}"
    yield match(Pattern.SHIFTED, 1, detail)


def _common_end(bad: Content, good: Content, most: int) -> int:
    """Return how many bytes at the end are the same, ``most`` at the most."""
    same = 0
    while same < most:
        count = min(BLOCK_BYTES, most - same)
        theirs, ours = (each.read_at(each.size - same - count, count) for each in (bad, good))
        if theirs != ours:
            pairs = zip(reversed(theirs), reversed(ours), strict=True)
            return same + next(at for at, (one, other) in enumerate(pairs) if one != other)
        same += count
    return same


def _zero_pages(content: Content) -> tuple[int, int]:
    """Return how many whole pages are zero, and how many of them lie at the end."""
    count = tail = 0
    for chunk in content.chunks():
        for at in range(0, len(chunk), PAGE_BYTES):
            page = chunk[at : at + PAGE_BYTES]
            if not _ZEROS.startswith(page):
                tail = 0
            elif len(page) == PAGE_BYTES:
                count, tail = count + 1, tail + 1
    return count, tail


# What is left --------------------------------------------------------------------------------


def _fallback(bad: Content, good: Content, damage: Damage, ends: Sequence[Match]) -> Match:
    """Return what describes the bytes that differ, where nothing explains them."""
    share = damage.bytes / damage.total if ends else 1
    if damage.span >= WHOLE_SHARE * damage.common and (damage.bytes >= DENSE_SHARE * damage.common):
        return _wholly_different(bad, good, damage)
    if damage.bytes >= DENSE_SHARE * damage.span:
        first, last = cast("int", damage.first), cast("int", damage.last)
        alignment = _alignment(first, last + 1, damage.common)
        detail = f"{damage.span:,} bytes from byte {first:,} to {last:,}{alignment}"
        return match(Pattern.REGION, share, detail)
    detail = f"{damage.bytes:,} bytes in {damage.range_count:,} places"
    return match(Pattern.SCATTERED, share, detail)


def _alignment(start: int, stop: int, size: int) -> str:
    for unit, name in ((MIB, "blocks of 1 MiB"), *((each, _UNITS[each]) for each in _LARGE_FIRST)):
        if start % unit == 0 and (stop % unit == 0 or stop == size):
            return f", both borders at multiples of {name}"
    return ""


_LARGE_FIRST = (PAGE_BYTES, SECTOR_BYTES)


def _wholly_different(bad: Content, good: Content, damage: Damage) -> Match:
    theirs, ours = kind_of(bad), kind_of(good)
    dimensions = _dimensions(bad)
    if theirs == ours and dimensions is not None and dimensions == _dimensions(good):
        width, height = dimensions
        detail = f"both are {theirs} of {width:,} x {height:,} pixels, of other bytes"
        return match(Pattern.REENCODED_IMAGE, 1, detail)
    share = damage.bytes / damage.common if damage.common else 1
    detail = f"{share:.1%} of the bytes differ"
    if theirs != ours:
        detail += f"; the bad bytes begin like {theirs}, the good ones like {ours}"
    return match(Pattern.WHOLLY_DIFFERENT, 1, detail)


_LARGEST_HEAD_BYTES = 1 << 16
"""Where the dimensions of an image stand at the latest."""

_JPEG_START, _JPEG_MARKER, _PNG_HEAD = b"\xff\xd8", 0xFF, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _dimensions(content: Content) -> tuple[int, int] | None:
    """Return the width and height in pixels of a PNG (its IHDR) or a JPEG (its frame header)."""
    head = content.read_at(0, _LARGEST_HEAD_BYTES)
    try:
        if head.startswith(_PNG_HEAD):
            width, height = struct.unpack_from(">II", head, len(_PNG_HEAD))
            return width, height
        at = len(_JPEG_START) if head.startswith(_JPEG_START) else len(head)
        while head[at] == _JPEG_MARKER:
            length, _, height, width = struct.unpack_from(">HBHH", head, at + 2)
            if head[at + 1] in _JPEG_FRAMES:
                return width, height
            at += 2 + length
    except (IndexError, struct.error):
        return None
    return None
