"""Members of tars: what `tarfile` finds in whole ones, and all but the damage in others."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from pipelines.datasets.prepare.tars import Damage, TarMember, tar_members

NAMES = ["a/0.txt", "a/" + "long" * 60 + ".txt", "b/ü 1.txt", "a/2.txt", "c.json"]


def content(name: str) -> bytes:
    return name.encode() * (1 + len(name) % 100)


def tar_of(names: list[str], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            tar.addfile(info, io.BytesIO(content(name)))
    return buffer.getvalue()


def read(tar: bytes) -> list[TarMember | Damage]:
    return list(tar_members(io.BytesIO(tar), len(tar)))


def named(tar: bytes) -> dict[str, bytes]:
    """Content by name of the members that were found."""
    members = [found for found in read(tar) if isinstance(found, TarMember)]
    return {name: tar[offset : offset + size] for name, offset, size in members}


@pytest.mark.parametrize(
    "tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]
)
def test_whole_tars_are_read_as_tarfile_reads_them(tar_format: int):
    names = [n for n in NAMES if tar_format != tarfile.USTAR_FORMAT or len(n) < 100]
    assert named(tar_of(names, tar_format)) == {name: content(name) for name in names}
    assert not [found for found in read(tar_of(names, tar_format)) if isinstance(found, Damage)]


def test_tars_one_behind_the_other_are_read_on():
    assert list(named(tar_of(NAMES[:2]) + tar_of(NAMES[2:]))) == NAMES


def test_a_name_that_is_not_utf_8_is_readable():
    tar = bytearray(tar_of(["x.txt"]))
    info = tarfile.TarInfo("\udcffx.txt")
    tar[512:1024] = info.tobuf(encoding="utf-8", errors="surrogateescape")
    assert list(named(bytes(tar))) == ["\ufffdx.txt"]


@pytest.mark.parametrize("damaged", range(5))
def test_one_byte_of_a_header_costs_one_member(damaged: int):
    names = [f"{number}.txt" for number in range(5)]
    tar = bytearray(tar_of(names))
    header = tar.index(b"%d.txt" % damaged)
    tar[header + 130] ^= 1
    assert list(named(bytes(tar))) == [name for name in names if name != f"{damaged}.txt"]
    (damage,) = (found for found in read(bytes(tar)) if isinstance(found, Damage))
    assert damage.start == header
    assert damage.why == "no header: bad checksum"


@pytest.mark.parametrize("size", [-512, 2**40])
def test_a_size_that_cannot_be_is_damage(size: int):
    tar = bytearray(tar_of(["0.txt", "1.txt", "2.txt"]))
    header = tar.index(b"1.txt")
    info = tarfile.TarInfo("1.txt")
    block = bytearray(info.tobuf())
    # In base 256, as GNU writes numbers that octal digits have no room for.
    block[124:136] = (0x80 if size > 0 else 0xFF).to_bytes(1, "big") + (size % 2**88).to_bytes(
        11, "big"
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    tar[header : header + 512] = block
    assert list(named(bytes(tar))) == ["0.txt", "2.txt"]
    assert len([found for found in read(bytes(tar)) if isinstance(found, Damage)]) == 1


def test_what_is_cut_off_is_damage():
    tar = tar_of(["0.txt", "1.txt"])
    cut = tar[: tar.index(content("1.txt"), tar.index(b"1.txt") + 512) + 3]
    assert list(named(cut)) == ["0.txt"]
    (damage,) = (found for found in read(cut) if isinstance(found, Damage))
    assert damage.stop == len(cut)


def test_any_bytes_come_to_an_end_and_account_for_all_of_them():
    generator = random.Random(0)
    whole = {tar_format: tar_of(NAMES, tar_format) for tar_format in (0, 1, 2) if tar_format}
    for _ in range(300):
        tar = bytearray(generator.choice(list(whole.values())))
        for _ in range(generator.randint(1, 20)):
            tar[generator.randrange(len(tar))] = generator.randrange(256)
        tar = tar[: generator.randrange(len(tar) + 1)]
        end = 0
        for found in read(bytes(tar)):
            start, stop = (
                (found.start, found.stop)
                if isinstance(found, Damage)
                else (found.offset, found.offset + found.size)
            )
            assert end <= start <= stop <= len(tar)
            end = stop
