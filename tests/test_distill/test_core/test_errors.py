"""What an error of another library becomes in a message of this project."""

import pytest

from distill.core.errors import in_one_line


@pytest.mark.parametrize(
    ("error", "letters", "text"),
    [
        (ValueError("size mismatch:\n\tcopying a param   of 3"), 200, "size mismatch: copying a param of 3"),
        (ValueError("abcdef"), 3, "abc"),
        (ValueError("x" * 300), None, "x" * 300),
        (AssertionError(), 200, "AssertionError"),
        (ValueError(" \n "), 200, "ValueError"),
    ],
)
def test_the_text_is_of_one_line_cut_and_never_empty(error, letters, text):
    assert in_one_line(error, letters) == text
