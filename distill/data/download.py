"""Downloads of benchmarks from their official addresses: resumed, verified, and unpacked safely.

The standard library does it: ``pooch`` 1.9 starts an interrupted download again from the first byte.
"""

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from distill.core.errors import DataError, in_one_line

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
MAX_RATIO = 100  # how many times as large as the archive its files may be; photographs hardly grow
SMALL = 100 * 2**20  # bytes that the files of an archive may have in any case
MAX_MEMBERS = 2_000_000  # SPair-71k has a file for each of its 70,958 pairs
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk that is full or may not be written to."""
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, RuntimeError, ValueError)
"""What unpacking a damaged archive raises; an OSError is often something else, see :func:`_is_of_disk`."""


@dataclass(frozen=True)
class Source:
    """One file of a benchmark.

    Attributes:
        url: its official address.
        md5: of the file, where it is published.
        into: sub-folder that it belongs in.
    """

    url: str
    md5: str | None = None
    into: str = "."

    @property
    def filename(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url.partition("?")[0]).name


@dataclass(frozen=True)
class Recipe:
    """How a benchmark is obtained.

    Attributes:
        sources: what can be fetched.
        manual: what a person has to do, or has to know.
        licence: what its authors say of its use; model cards repeat it. Where their page could not be read when this was
            written it ends with "not checked".
    """

    sources: Sequence[Source]
    manual: str
    licence: str


_NOT_CHECKED = "not checked"
_FLICKR = f"images of PASCAL VOC, from Flickr, under its terms of use; {_NOT_CHECKED}"
_WILLOW = "https://www.di.ens.fr/willow/research"
_SOCO = "https://huggingface.co/datasets/GenIntelLab/SOCO/resolve/main"
_LISTS = f"{_WILLOW}/cnngeometric/other_resources"

RECIPES: Mapping[str, Recipe] = {
    "spair71k": Recipe(
        [Source("https://cvlab.postech.ac.kr/research/SPair-71k/data/SPair-71k.tar.gz")],
        "https://cvlab.postech.ac.kr/research/SPair-71k/; afterwards data.root is the folder SPair-71k.",
        f"SPair-71k names none; {_FLICKR}",
    ),
    "spair_u": Recipe(
        [],
        "download SPair-71k with data=spair71k, then the annotations that https://github.com/VICO-UoE/JamaisVu links to "
        "(SPair-U.zip), and put them into its folder as ExtraPairAnnotation and ExtraImageAnnotation.",
        f"its repository names none; {_FLICKR}",
    ),
    "pf_pascal": Recipe(
        [
            Source(f"{_WILLOW}/proposalflow/dataset/PF-dataset-PASCAL.zip"),
            Source(f"{_LISTS}/test_pairs_pf_pascal.csv", into="PF-dataset-PASCAL"),
            Source(f"{_LISTS}/val_pairs_pf_pascal.csv", into="PF-dataset-PASCAL"),
        ],
        "the list of training pairs, train_pairs_pf_pascal.csv, has no stable address: SCNet's authors keep it, "
        "https://github.com/k-han/SCNet; put it beside the others.",
        f"PF-PASCAL names none; {_FLICKR}",
    ),
    "pf_willow": Recipe(
        [
            Source(f"{_WILLOW}/proposalflow/dataset/PF-dataset.zip"),
            Source(f"{_LISTS}/test_pairs_pf.csv", into="PF-dataset"),
        ],
        "https://www.di.ens.fr/willow/research/proposalflow/; without test_pairs_pf.csv the 900 pairs are made.",
        f"PF-WILLOW names none; its images were collected for research; {_NOT_CHECKED}",
    ),
    "cub": Recipe(
        [
            Source(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                md5="97eceeb196236b17998738112f37df78",
            )
        ],
        "https://www.vision.caltech.edu/datasets/cub_200_2011/; afterwards data.root is the folder CUB_200_2011.",
        f"images for non-commercial research and education only; {_NOT_CHECKED}",
    ),
    "ap10k": Recipe(
        [],
        "AP-10K has no stable address: take the images from https://github.com/AlexTheBad/AP-10K, and make JPEGImages, "
        "ImageAnnotation and PairAnnotation of them with prepare_ap10k.ipynb of https://github.com/Junyi42/GeoAware-SC.",
        "CC BY 4.0, as its repository says",
    ),
    "soco": Recipe(
        [Source(f"{_SOCO}/{name}.zip", into="SOCOv1") for name in ("Images", "PairAnnotations")],
        "https://huggingface.co/datasets/GenIntelLab/SOCO; afterwards data.root is the folder SOCOv1. The layout is the one that page "
        "describes; nothing was downloaded from it when this was written.",
        "CC BY 4.0, as its page says",
    ),
    "folder": Recipe(
        [], "photographs of your own need no download: one sub-folder for each category.", "that of your photographs"
    ),
    "shapes": Recipe([], "shapes is drawn by the program and needs no download.", "Apache-2.0, drawn by the program"),
}


def licence_of(name: str) -> str | None:
    """Returns what is said of the use of the data set ``name``, or None where that is not known."""
    recipe = RECIPES.get(name)
    return recipe.licence if recipe is not None else None


def download(source: Source, folder: Path, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Fetches a file, going on where an earlier try ended, and unpacks it if it is an archive.

    The file appears whole or not at all; until then it is named ``.part``. An archive is removed after it was unpacked.

    Args:
        source: what to fetch.
        folder: where to.
        progress: called with the bytes that are there and, if known, how many there will be.

    Returns:
        The file, or the folder that it was unpacked in.

    Raises:
        DataError: when the server does not answer or breaks off, the checksum differs, the file cannot be written, or
            the archive is damaged or wants to write outside of the folder.
    """
    place = folder / source.into
    file = place / source.filename
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            part = file.with_name(f"{file.name}.part")
            _fetch(source.url, part, progress)
            _verify(part, source)
            os.replace(part, file)
    except (OSError, http.client.HTTPException) as error:
        again = "run the command again, it goes on where it stopped"
        if isinstance(error, OSError) and error.errno in NO_PLACE:
            again = f"make room in {place} or choose another data.root, and {again}"
        raise DataError(f"Expected to download {source.url} but got: {error}; {again}.") from error
    if file.suffix in (".zip", ".tgz") or file.name.endswith(".tar.gz"):
        extract(file, place)
        file.unlink()
        return place
    return file


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a ZIP or TAR archive; looks at all members before it writes the first.

    Raises:
        DataError: when the archive is damaged, it cannot be read or the folder cannot be written to, a member is a link or
            device or lies outside of the folder, or the files are too many or too large: see ``MAX_MEMBERS`` and
            ``MAX_RATIO``, and the free space of the disk. The archive stays where it is.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                infos = zipped.infolist()
                _check_sizes(archive, folder, (info.file_size for info in infos))
                _check_members(
                    archive, zipped.namelist(), [i.filename for i in infos if (i.external_attr >> 28) == 0o12]
                )
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tarred:
                _check_sizes(archive, folder, (member.size for member in tarred))
                members = tarred.getmembers()
                special = [m.name for m in members if not (m.isfile() or m.isdir())]
                _check_members(archive, [m.name for m in members], special)
                tarred.extraction_filter = getattr(tarfile, "data_filter", None)  # absent before Python 3.11.4,
                for member in members:  # hence modes without set-user-id and the like here, and the reader may write
                    member.mode = 0o755 if member.isdir() else 0o644
                tarred.extractall(folder, members)
    except DAMAGED as error:
        if _is_of_disk(error):
            raise DataError(
                f"Expected to unpack {archive} in {folder} but got: {error}; the archive was kept: make room or correct the "
                "permissions, and run the command again."
            ) from error
        raise DataError(
            f"Expected an archive in {archive} but it is damaged ({in_one_line(error, None)}); remove it and download again."
        ) from error


def _is_of_disk(error: Exception) -> bool:
    """Returns whether an error of unpacking says nothing of the archive: of a file, a folder or the disk.

    The readers of archives raise OSErrors without a number, and seek to places that are not there, which is EINVAL and
    names no file.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return False
    return error.errno != errno.EINVAL or error.filename is not None


def _check_sizes(archive: Path, folder: Path, sizes: Iterable[int]) -> None:
    """Adds up the sizes of members, as far as is needed to see that they are too large, without unpacking them."""
    limit = max(MAX_RATIO * archive.stat().st_size, SMALL)
    free = shutil.disk_usage(next(place for place in (folder, *folder.resolve().parents) if place.exists())).free
    total = 0
    for number, size in enumerate(sizes, start=1):
        total += size
        if number > MAX_MEMBERS:
            raise DataError(
                f"Expected at most {MAX_MEMBERS} files and folders in {archive} but it has more; nothing was unpacked."
            )
        if total > limit:
            raise DataError(
                f"Expected the files of {archive} to grow to at most {limit / 2**20:.1f} MiB but they are at least "
                f"{total / 2**20:.1f} MiB; nothing was unpacked, do not trust it."
            )
        if total > free:
            raise DataError(
                f"Expected room for the files of {archive} in {folder} but there are {free / 2**20:.1f} MiB; make room."
            )


def _check_members(archive: Path, names: Sequence[str], special: Sequence[str]) -> None:
    """Refuses an archive with a member that lies outside of the folder, or is one of the ``special`` ones."""
    outside = [n for n in names if ".." in PurePosixPath(n.replace("\\", "/")).parts or n.startswith(("/", "\\"))]
    outside += [name for name in names if name[1:2] == ":"]
    for found, what in ((outside, "lies outside of the folder"), (special, "is a link or a device")):
        if found:
            raise DataError(
                f"Expected files and folders in {archive} but {found[0]} {what}; nothing was unpacked, do not trust it."
            )


def _fetch(url: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is left to fetch
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        done = done if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the server broke off after {done} of {total} bytes")


def _verify(part: Path, source: Source) -> None:
    if source.md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != source.md5:
        part.unlink()
        raise DataError(
            f"Expected {source.filename} with MD5 {source.md5} but got {digest.hexdigest()}; it was removed, download again."
        )
