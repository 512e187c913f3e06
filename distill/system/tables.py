"""Tables that fit the terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int | None = None) -> None:
    """Prints a table, in as many parts below one another as it takes to fit; each part has the first column.

    Args:
        columns: the headers; each word stands on a line of its own.
        rows: one cell for each column.
        title: stands above the first part.
        width: columns of characters; without it the terminal's.
    """
    console = Console(width=width)
    for number, part in enumerate(_parts(columns, rows, console.width)):
        table = Table(title=title if number == 0 else None, title_justify="left")
        for index in part:
            header = columns[index].replace(" ", "\n")
            table.add_column(header, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[index] for index in part))
        console.print(table)


def _parts(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """Yields the numbers of the columns of each part."""
    needed = [_width(name, [row[index] for row in rows]) for index, name in enumerate(columns)]
    part, used = [0], needed[0] + 1
    for index in range(1, len(columns)):
        if used + needed[index] > width and len(part) > 1:
            yield part
            part, used = [0], needed[0] + 1
        part.append(index)
        used += needed[index]
    yield part


def _width(header: str, cells: Sequence[str]) -> int:
    """Returns what a column takes: its longest word or cell, a space on both sides and a line."""
    return max(len(word) for word in [*header.split(), *cells, ""]) + 3
