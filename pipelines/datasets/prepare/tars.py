"""The members of a tar, whatever its bytes are: reading goes on behind what is damaged."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clippo_core.unicode import readable

_BLOCK = tarfile.BLOCKSIZE
#: Blocks that are looked through at a time for the next header.
_SEARCHED_BYTES = 4096 * _BLOCK
#: Most bytes of a header's extension, such as a long name.
_MAX_EXTENSION_BYTES = 2**20
#: What nearly all headers have, and where.
_MAGIC, _MAGIC_AT = b"ustar", 257
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
#: Length, name and "=" of a record of an extended header; its value follows, and a line end.
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class TarMember(NamedTuple):
    """A file in a tar: its name, and where its content lies.

    A name that is not UTF-8 has U+FFFD where it is not.
    """

    name: str
    offset: int
    size: int


class Damage(NamedTuple):
    """Bytes of a tar, from `start` up to `stop`, that are no member, and why."""

    start: int
    stop: int
    why: str


def tar_members(stream: BinaryIO, size: int) -> Iterator[TarMember | Damage]:
    """Yield the regular files of a tar in their order, and what is damaged between them.

    Each header is checked: its checksum, its size, its kind. Behind a damaged one the next valid
    header is searched for, so that what it hides is lost and no more. Blocks of zeros, which end a
    tar, are passed over, since tars are concatenated, too.

    Args:
        stream: open file that can seek.
        size: its size in bytes.
    """
    at, name, length = 0, None, None
    while at + _BLOCK <= size:
        found = _header(stream, at, size, length)
        if isinstance(found, int | Damage):
            if isinstance(found, Damage):
                yield found
            at, name, length = found if isinstance(found, int) else found.stop, None, None
            continue
        data = at + _BLOCK
        at = data if found.type in _WITHOUT_DATA else _behind(data, found.size)
        if found.type == tarfile.GNUTYPE_LONGNAME:
            name = _read(stream, data, found.size).rstrip(b"\0").decode("utf-8", "replace")
        elif found.type == tarfile.XHDTYPE:
            name, length = _pax(_read(stream, data, found.size), name)
        elif found.type not in _EXTENSIONS:
            if found.type in _FILES:
                yield TarMember(name or readable(found.name), data, found.size)
            name = length = None
    if at < size and _read(stream, at, size - at).strip(b"\0"):
        yield Damage(at, size, "the end is cut short")


def _header(
    stream: BinaryIO, at: int, size: int, length: int | None
) -> tarfile.TarInfo | Damage | int:
    """Return the header at an offset, the damage there, or where zeros end.

    Args:
        stream: the tar.
        at: offset.
        size: size of the tar in bytes.
        length: size of the member by the extended header before it, which counts.
    """
    block = _read(stream, at, _BLOCK)
    if block.count(0) == _BLOCK:
        return _end_of_zeros(stream, at + _BLOCK, size)
    found = _parse(block)
    if isinstance(found, str):
        return Damage(at, _next_header(stream, at + _BLOCK, size), found)
    if length is not None and found.type not in _EXTENSIONS:
        found.size = length
    data, problem = at + _BLOCK, ""
    if found.type not in _WITHOUT_DATA and data + found.size > size:
        problem = f"{readable(found.name)} is cut short"
    elif found.type in _EXTENSIONS and found.size > _MAX_EXTENSION_BYTES:
        problem = f"an extended header of {found.size} bytes"
    elif found.type == tarfile.GNUTYPE_SPARSE:
        problem = f"{readable(found.name)} is a sparse file, which is not read"
    return Damage(at, _next_header(stream, data, size), problem) if problem else found


def _read(stream: BinaryIO, start: int, num_bytes: int) -> bytes:
    stream.seek(start)
    return stream.read(num_bytes)


def _behind(data: int, num_bytes: int) -> int:
    """Return where the next header is, behind so many bytes of data."""
    return data + -(-num_bytes // _BLOCK) * _BLOCK


def _parse(block: bytes) -> tarfile.TarInfo | str:
    """Return a header, or why it is none."""
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"no header: {error}"
    return found if found.size >= 0 else f"a header says {found.size} bytes"


def _end_of_zeros(stream: BinaryIO, start: int, size: int) -> int:
    """Return the offset of the first block that is not all zeros; the file's size without one."""
    for at in range(start, size, _SEARCHED_BYTES):
        content = _read(stream, at, _SEARCHED_BYTES)
        zeros = len(content) - len(content.lstrip(b"\0"))
        if zeros < len(content):
            return at + zeros // _BLOCK * _BLOCK
    return size


def _next_header(stream: BinaryIO, start: int, size: int) -> int:
    """Return the offset of the first block that is a valid header; the file's size without one."""
    for at in range(start, size, _SEARCHED_BYTES):
        content = _read(stream, at, _SEARCHED_BYTES)
        for magic in re.finditer(_MAGIC, content):
            first = magic.start() - _MAGIC_AT
            is_at_a_block = first >= 0 and first % _BLOCK == 0
            if is_at_a_block and not isinstance(_parse(content[first : first + _BLOCK]), str):
                return at + first
    return size


def _pax(content: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Return name and size from the records of an extended header; None where it has none."""
    values, at = dict[bytes, bytes](), 0
    while record := _PAX_RECORD.match(content, at):
        end = at + int(record[1])
        if end <= record.end():
            break
        values[record[2]] = content[record.end() : end - 1]
        at = end
    if b"path" in values:
        name = values[b"path"].decode("utf-8", "replace")
    size = values.get(b"size", b"")
    return name, int(size) if re.fullmatch(rb"\d{1,18}", size) else None
