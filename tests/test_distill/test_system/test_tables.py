import pytest

from distill.system.tables import print_table

COLUMNS = ["matcher", *(f"PCK @0.{n}" for n in ("01", "05", "10", "15")), "agrees @0.10", "ms/pair", "parameters"]
ROWS = [["nearest_neighbour", "100.0", "93.1", "51.0", "67.7", "100.0", "1234.5", "123.45 M"], ["teacher", *["–"] * 7]]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_table_fits_and_leaves_nothing_out(width, capsys):
    print_table(COLUMNS, ROWS, "300 pairs, percent", width)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(cell in text for row in ROWS for cell in row) and all(w in text for c in COLUMNS for w in c.split())


LOADER = ["what", "variant", "batch", "threads", "per second", "latency ms", "peak memory mib"]
PASSES = [
    ["loader", f"spair71k, {n} workers, {name} pass", "8", "1", f"{number}.25", f"{number}.5", f"{number}9.5"]
    for n, (name, number) in enumerate([("first", "11"), ("second", "22"), ("third", "33")])
]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_each_part_says_what_its_rows_are(width, capsys):
    """At 80 columns the memory stood beside three times "loader", and nothing else."""
    print_table(LOADER, PASSES, "", width, keys=4)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    for row in PASSES:
        for value in row[4:]:
            (index,) = (number for number, line in enumerate(lines) if f" {value} " in line)
            told = "".join(lines[index : index + 3])  # a long name takes several lines
            assert all(word in told for word in row[1].split())


def test_a_wide_terminal_gets_one_part(capsys):
    print_table(COLUMNS, ROWS, "", 100)
    assert capsys.readouterr().out.count("nearest_neighbour") == 1
    print_table(COLUMNS, ROWS, "", 60)
    assert capsys.readouterr().out.count("nearest_neighbour") == 2
