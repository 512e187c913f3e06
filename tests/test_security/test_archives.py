"""A downloaded archive: nothing leaves its folder, whatever its members are called."""

import io
import stat
import tarfile
import zipfile

import pytest

from distill.core.errors import DataError
from distill.data.download import extract


def tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def member(name, kind=tarfile.REGTYPE, link="", mode=0o644):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.mark.parametrize(
    "hostile",
    [
        [member("../marker")],
        [member("a/../../marker")],
        [member("{outside}/marker")],
        [member("link", tarfile.SYMTYPE, ".."), member("link/marker")],
        [member("link", tarfile.SYMTYPE, "{outside}"), member("link/marker")],
        [member("link", tarfile.LNKTYPE, "../secret")],
        [member("device", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
    ],
    ids=["parent", "inner parent", "absolute", "link up", "link out", "hard link", "device", "pipe"],
)
def test_a_tar_archive_that_reaches_out_of_its_folder_is_refused_whole(tmp_path, folder, hostile):
    (tmp_path / "secret").write_text("kept")
    members = [(member("honest.txt"), b"x")]
    for entry in hostile:
        entry.name, entry.linkname = (text.format(outside=tmp_path) for text in (entry.name, entry.linkname))
        members.append((entry, b"x" if entry.isreg() else b""))
    tar(tmp_path / "a.tgz", members)
    with pytest.raises(DataError, match="nothing was unpacked, do not trust it"):
        extract(tmp_path / "a.tgz", folder)
    assert not list(folder.iterdir()) and not (tmp_path / "marker").exists()
    assert (tmp_path / "secret").read_text() == "kept"


def test_set_user_id_bits_are_not_unpacked(tmp_path, folder):
    tar(tmp_path / "a.tgz", [(member("tool", mode=0o6777), b"x")])
    extract(tmp_path / "a.tgz", folder)
    assert not stat.S_IMODE((folder / "tool").stat().st_mode) & 0o6000


@pytest.mark.parametrize(
    "name", ["../marker", "a/../../marker", "..\\marker", "/marker", "C:\\marker", "a\\..\\..\\marker"]
)
def test_a_zip_archive_that_reaches_out_of_its_folder_is_refused_whole(tmp_path, folder, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("honest.txt", "x")
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="nothing was unpacked, do not trust it"):
        extract(tmp_path / "a.zip", folder)
    assert not list(folder.iterdir())


def test_a_link_in_a_zip_archive_is_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path))
        archive.writestr("link/marker", "x")
    with pytest.raises(DataError, match="is a link or a device"):
        extract(tmp_path / "a.zip", folder)
    assert not (tmp_path / "marker").exists()
