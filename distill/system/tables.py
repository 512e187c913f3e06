"""Tables, for the terminal and in Markdown."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

SHORTEST = 15
"""Characters that a column of long cells takes at least, with spaces and a line."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int | None = None, keys: int = 1
) -> None:
    """Prints a table, in as many parts below one another as it takes to fit; each part has the first columns.

    Args:
        columns: the headers; each word stands on a line of its own.
        rows: one cell for each column.
        title: stands above the first part.
        width: columns of characters; without it the terminal's.
        keys: how many of the first columns say what a row is. Of these the one with the longest cells takes several lines where
            they leave no room for another column.
    """
    console = Console(width=width)
    needed = [_width(name, [row[index] for row in rows]) for index, name in enumerate(columns)]
    longest = max(range(keys), key=needed.__getitem__)
    others = sum(needed[:keys]) - needed[longest] + max(needed[keys:], default=0) + 1
    needed[longest] = min(needed[longest], max(console.width - others, SHORTEST))
    for number, part in enumerate(_parts(needed, console.width, keys)):
        table = Table(title=title if number == 0 else None, title_justify="left")
        for index in part:
            header = columns[index].replace(" ", "\n")
            table.add_column(
                header,
                justify="left" if index in (0, longest) else "right",
                overflow="fold",
                no_wrap=index != longest,
                max_width=needed[index] - 3,
            )
        for row in rows:
            table.add_row(*(row[index] for index in part))
        console.print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """Returns a table in Markdown, one cell for each column, with a note below it."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", note, ""])


def _parts(needed: Sequence[int], width: int, keys: int) -> Iterator[list[int]]:
    """Yields the numbers of the columns of each part; ``needed`` is what each column takes."""
    first, taken = list(range(keys)), sum(needed[:keys]) + 1
    part, used = list(first), taken
    for index in range(keys, len(needed)):
        if used + needed[index] > width and len(part) > keys:
            yield part
            part, used = list(first), taken
        part.append(index)
        used += needed[index]
    yield part


def _width(header: str, cells: Sequence[str]) -> int:
    """Returns what a column takes: its longest word or cell, a space on both sides and a line."""
    return max(len(word) for word in [*header.split(), *cells, ""]) + 3
