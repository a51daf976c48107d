"""Tables whose bytes are not what they should be: what is good is read, the rest is named."""

from __future__ import annotations

import io

import pytest

from clippo_core.errors import SampleError
from pipelines.datasets.prepare.tables import DamagedRow, csv_rows, json_objects
from pipelines.runtime.storage import Location

PLACE = Location("/data/x.csv")


def read(text: str, *wanted: str) -> list[tuple[int, dict[str, str] | DamagedRow]]:
    return list(csv_rows(io.StringIO(text, newline=""), PLACE, wanted or ("a", "b")))


def values(text: str) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for _, row in read(text) if isinstance(row, dict)]


def damaged(text: str) -> list[tuple[int, str]]:
    return [(number, row.detail) for number, row in read(text) if isinstance(row, DamagedRow)]


def test_whole_tables_are_read_as_csv_is():
    text = 'a,b\r\n1,"x, ""y"" \nand z"\r\n\r\n2\r\n3,4,5\r\n'
    assert values(text) == [("1", 'x, "y" \nand z'), ("2", ""), ("3", "4")]
    assert [number for number, _ in read(text)] == [2, 5, 6]


def test_a_quote_that_is_never_closed_costs_one_row():
    rows = [f"{number},text {number}" for number in range(1000)]
    rows[500] = '500,"text 500'
    text = "\n".join(["a,b", *rows, ""])
    assert values(text) == [(str(n), f"text {n}") for n in range(1000) if n != 500]
    assert damaged(text) == [(502, "unexpected end of data")]


@pytest.mark.parametrize("later", ['"7",x', '7,"x"', 'x","y', '"7","x"'])
def test_a_quote_that_another_row_closes_costs_one_row(later: str):
    text = f'a,b\n1,"open\n2,x\n3,x\n{later}\n8,x\n'
    assert [row[0] for row in values(text)][:2] == ["2", "3"]
    assert values(text)[-1] == ("8", "x")
    assert damaged(text)[0][0] == 2


def test_quotes_inside_a_field_are_taken_as_they_are():
    assert values('a,b\n"12" screen,x\n') == [("12 screen", "x")]
    assert values('a,b\nthe "best",x\n') == [('the "best"', "x")]


def test_a_field_that_is_too_long_costs_one_row():
    text = f"a,b\n1,{'x' * 200_000}\n2,y\n"
    assert values(text) == [("2", "y")]
    assert damaged(text) == [(2, "field larger than field limit (131072)")]


def test_columns_must_be_there_once():
    with pytest.raises(SampleError, match=r"has no column 'c'; it has \['a', 'b'\]; name yours"):
        read("a,b\n1,2\n", "c")
    with pytest.raises(SampleError, match=r"2 columns called 'a'; rename all but one"):
        read("a,a\n1,2\n", "a")
    with pytest.raises(SampleError, match=r"has no column 'a'; it has \[\]"):
        read("")


def test_json_that_is_nested_too_deep_costs_one_row():
    lines = ['{"a": 1}', '{"a": ' + "[" * 20_000, "[1]", '{"a": 2}']
    found = list(json_objects(lines, PLACE, ["a"]))
    assert [row for _, row in found if isinstance(row, dict)] == [{"a": 1}, {"a": 2}]
    assert [number for number, row in found if isinstance(row, DamagedRow)] == [2, 3]
