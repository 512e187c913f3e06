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


def test_a_wide_terminal_gets_one_part(capsys):
    print_table(COLUMNS, ROWS, "", 100)
    assert capsys.readouterr().out.count("nearest_neighbour") == 1
    print_table(COLUMNS, ROWS, "", 60)
    assert capsys.readouterr().out.count("nearest_neighbour") == 2
