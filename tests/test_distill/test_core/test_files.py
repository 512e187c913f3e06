import os
import stat

import pytest

from distill.core.errors import DataError
from distill.core.files import replacing


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_finished_file_has_the_umasks_ordinary_mode_whatever_the_writer_chose(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"new")
            temporary.chmod(0o600)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.bin") == expected
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_path_lies_beside_the_file_and_keeps_its_suffix(tmp_path):
    with replacing(tmp_path / "folder" / "a.npz") as temporary:
        assert temporary.parent == tmp_path / "folder"
        assert temporary.suffix == ".npz"
    assert (tmp_path / "folder" / "a.npz").exists()


def test_a_symbolic_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with replacing(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder; add a file name to it"), replacing(tmp_path):
        pytest.fail("the block must not run")


def test_a_place_that_cannot_be_written_to_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Expected a place to write"), replacing(tmp_path / "file" / "a.txt"):
        pytest.fail("the block must not run")
