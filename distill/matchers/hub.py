"""Any network behind a torch.hub entry, as a matcher or a teacher."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.checks import check_answer, check_label, check_query
from distill.core.digest import state_digest
from distill.core.errors import ConfigError, DataError, in_one_line
from distill.core.geometry import gaussian_heatmap, image_size
from distill.core.numbers import is_whole
from distill.core.types import Matches

LARGEST_SIDE = 1024
"""Cells a side of a heatmap that is made of points."""


class HubMatcher(nn.Module):
    """Asks a network that a local torch.hub repository builds.

    The entry returns something that is called as :class:`distill.core.protocols.Matcher` says. It may return
    :class:`distill.core.types.Matches`, a tuple of the three, or points (B, N, 2) alone; these get the confidence 1 and a
    Gaussian as heatmap. A network of another form wants an adapter, see docs/how-to/teacher.md.

    A repository's ``hubconf.py`` is code, which runs when the matcher is built.

    Args:
        repo: folder with ``hubconf.py``. Nothing is downloaded.
        entry: name of a function in it.
        run_code: must be true; says that the code in the folder is trusted.
        options: arguments of the entry.
        heatmap_side: cells a side of heatmaps that are made of points.

    Raises:
        ConfigError: when repo or entry is not named, the code is not trusted, there is no such folder or entry, or it fails, or
            what it returns cannot be called with two images and points.
    """

    def __init__(
        self,
        repo: str | None,
        entry: str | None,
        run_code: bool = False,
        options: Mapping[str, Any] | None = None,
        heatmap_side: int = 32,
    ) -> None:
        super().__init__()
        if not repo or not entry:
            raise ConfigError(
                f"Expected repo and entry of a torch.hub repository but got {repo!r} and {entry!r}; name both."
            )
        self.repo, self.entry = Path(repo).expanduser(), entry
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"Expected options of {entry} by name but got {options!r}; write options.<name>=<value>.")
        whole = is_whole(heatmap_side)
        if not whole or not 1 <= heatmap_side <= LARGEST_SIDE:
            raise ConfigError(
                f"Expected heatmap_side to be a whole number from 1 to {LARGEST_SIDE} but got {heatmap_side!r}; 32 is usual."
            )
        self.options, self.heatmap_side = dict(options or {}), heatmap_side
        self._model = load_entry(self.repo, entry, run_code, self.options)
        if isinstance(self._model, nn.Module):
            self._model.eval().requires_grad_(False)
        elif not callable(self._model):
            raise ConfigError(
                f"Expected {entry} of {self.repo} to return something that matches but got {type(self._model).__name__}."
            )
        _check_takes_a_query(self._model, f"{entry} of {self.repo}")

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.core.protocols.Fingerprinted`: the repository's code, the entry, its options and the weights."""
        told = {"method": "torch.hub 1", "entry": self.entry, "code": code_digest(self.repo)}
        told |= {"options": str(sorted(self.options.items())), "heatmap_side": str(self.heatmap_side)}
        told |= {"weights": state_digest(self._model) if isinstance(self._model, nn.Module) else "none"}
        own = getattr(self._model, "fingerprint", None)
        return told | ({f"own.{name}": str(value) for name, value in own().items()} if callable(own) else {})

    @torch.no_grad()
    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        The network is given copies, which it may change.

        Raises:
            DataError: for images or points, or an answer, that are not as the contract says, and when the network fails.
        """
        check_query(src_img, trg_img, src_kps)
        try:
            answer = self._model(src_img.clone(), trg_img.clone(), src_kps.clone())
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise DataError(
                f"Expected an answer of {self.entry} of {self.repo} to images {tuple(src_img.shape)} and {tuple(trg_img.shape)} with "
                f"points {tuple(src_kps.shape)} but got {_reason(error)}; correct its code, or write an adapter, as "
                "docs/how-to/teacher.md shows."
            ) from error
        return checked_answer(answer, src_kps, image_size(trg_img), self.heatmap_side, self.entry)


def _check_takes_a_query(model: Any, who: str) -> None:
    """Raises a :class:`ConfigError` when the signature of ``model`` says that it takes no src_img, trg_img, src_kps."""
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):  # some callables tell nothing
        return
    try:
        signature.bind("src_img", "trg_img", "src_kps")
    except TypeError as error:
        raise ConfigError(
            f"Expected what {who} returns to be called with src_img, trg_img, src_kps but {type(model).__name__} takes {signature}; "
            "write an adapter, as docs/how-to/teacher.md shows."
        ) from error


def load_entry(repo: str | Path, entry: str, run_code: bool, options: Mapping[str, Any]) -> Any:
    """Returns what a function of ``hubconf.py`` in a local folder returns.

    Raises:
        ConfigError: when the code is not trusted, there is no such folder or entry, or the entry fails.
    """
    repo = Path(repo).expanduser()
    if not (repo / "hubconf.py").is_file():
        raise ConfigError(
            f"Expected a folder with hubconf.py in repo but found none at {repo}; clone the repository there."
        )
    if run_code is not True:
        raise ConfigError(
            f"Expected run_code=true for the torch.hub repository {repo}, because its code will run on this machine, but got "
            f"{run_code!r}; read the code first, and set it only if you trust it."
        )
    try:
        with _without_modules_of_others(repo):
            return torch.hub.load(str(repo), entry, source="local", **options)
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise ConfigError(
            f"Expected the entry {entry} of {repo / 'hubconf.py'} to build a matcher but got {_reason(error)}; correct entry or "
            "options."
        ) from error


@contextmanager
def _without_modules_of_others(repo: Path) -> Iterator[None]:
    """Hides the modules of other torch.hub repositories that have the names of those of ``repo``, such as ``utils``.

    Python keeps modules by name, and a second repository would be given the code of the first.
    """
    own = {path.stem for path in repo.iterdir() if path.is_dir() or path.suffix == ".py"}
    others = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in own and _is_of_another(module, repo.resolve())
    }
    names = {name.partition(".")[0] for name in others}
    for name in others:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(others)


def _is_of_another(module: object, repo: Path) -> bool:
    """Returns whether a module's file lies in a folder with hubconf.py that is not ``repo``."""
    places = [getattr(module, "__file__", None), *list(getattr(module, "__path__", []))]
    folders = [folder for place in places if place for folder in Path(place).resolve().parents]
    return repo not in folders and any((folder / "hubconf.py").is_file() for folder in folders)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {in_one_line(error)}"


def checked_answer(
    answer: Any, src_kps: Tensor, trg_size: tuple[int, int], heatmap_side: int = 32, who: str = "the matcher"
) -> Matches:
    """Returns an answer of foreign code as the contract has it.

    Args:
        answer: :class:`Matches`, a tuple of points, confidence and heatmap, or points (B, N, 2) alone, x, y px.
        src_kps: the points that were asked for.
        trg_size: (H, W) of the targets, px.
        heatmap_side: cells a side of the heatmap that is made of points alone.
        who: answered, for messages.

    Raises:
        DataError: for other shapes, tensors that are not dense or hold no real numbers, values that are not finite, a confidence
            outside [0, 1], or a heatmap that is negative everywhere.
    """
    shape = (*src_kps.shape[:2], 2)
    odd = next((value for value in _tensors(answer) if not _is_plain(value)), None)
    if odd is not None:
        kind = f"{odd.dtype}, {odd.layout} on {odd.device.type}"
        raise DataError(f"Expected {who} to return dense tensors of real numbers but one is {kind}; convert it.")
    if isinstance(answer, Tensor) and answer.shape == shape:
        side = (heatmap_side, heatmap_side)
        heatmap = gaussian_heatmap(answer.float(), side, trg_size, max(trg_size) / heatmap_side)
        answer = (answer, torch.ones_like(answer[..., 0]), heatmap)
    if not isinstance(answer, tuple) or len(answer) != 3 or len(_tensors(answer)) != 3:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else _described(answer)
        raise DataError(
            f"Expected {who} to return points {shape}, or a tuple of points, confidence and heatmap, but got {got}; adapt it."
        )
    values = (value.to(src_kps.device, torch.float32) for value in answer)
    checked = check_answer(Matches(*values), src_kps, who)
    check_label(checked, torch.ones_like(checked.confidence, dtype=torch.bool), who)
    return checked


def _tensors(answer: Any) -> list[Tensor]:
    """Returns the tensors of an answer, which may be one, or a tuple of some."""
    return [value for value in (answer if isinstance(answer, tuple) else (answer,)) if isinstance(value, Tensor)]


def _described(answer: Any) -> str:
    """Returns the type of an answer; of a tuple or a list, of what."""
    name = type(answer).__name__
    if not isinstance(answer, tuple | list):
        return name
    return f"a {name} of {', '.join(type(value).__name__ for value in answer) or 'nothing'}"


def _is_plain(value: Tensor) -> bool:
    """Returns whether a tensor holds real numbers, all of them."""
    return value.layout == torch.strided and not (value.is_meta or value.is_complex() or value.dtype == torch.bool)


def code_digest(repo: str | Path) -> str:
    """Returns a hash of all Python files in a folder, by their names and content."""
    digest, repo = hashlib.blake2b(digest_size=16), Path(repo).expanduser()
    for file in sorted(path for path in repo.rglob("*.py") if path.is_file()):
        digest.update(file.relative_to(repo).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
