"""Any network behind a torch.hub entry, as a matcher or a teacher."""

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.checks import check_answer, check_label, check_query
from distill.core.digest import state_digest
from distill.core.errors import ConfigError, DataError
from distill.core.geometry import gaussian_heatmap, image_size
from distill.core.types import Matches


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
        self.options, self.heatmap_side = dict(options or {}), heatmap_side
        if heatmap_side < 1:
            raise ConfigError(f"Expected heatmap_side to be at least 1 but got {heatmap_side}.")
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
        return told | {"weights": state_digest(self._model) if isinstance(self._model, nn.Module) else "none"}

    @torch.no_grad()
    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        Raises:
            DataError: for images or points, or an answer, that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        answer = self._model(src_img, trg_img, src_kps)
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
        return torch.hub.load(str(repo), entry, source="local", **options)
    except Exception as error:  # foreign code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"Expected the entry {entry} of {repo / 'hubconf.py'} to build a matcher but got {type(error).__name__}: {reason}; "
            "correct entry or options."
        ) from error


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
        DataError: for other shapes, values that are not finite, a confidence outside [0, 1], or a heatmap that is negative everywhere.
    """
    shape = (*src_kps.shape[:2], 2)
    if isinstance(answer, Tensor) and answer.shape == shape:
        side = (heatmap_side, heatmap_side)
        heatmap = gaussian_heatmap(answer.float(), side, trg_size, max(trg_size) / heatmap_side)
        answer = (answer, torch.ones_like(answer[..., 0]), heatmap)
    if not isinstance(answer, tuple) or len(answer) != 3 or not all(isinstance(value, Tensor) for value in answer):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise DataError(
            f"Expected {who} to return points {shape}, or a tuple of points, confidence and heatmap, but got {got}; adapt it."
        )
    checked = check_answer(Matches(*answer), src_kps, who)
    check_label(checked, torch.ones_like(checked.confidence, dtype=torch.bool), who)
    return checked


def code_digest(repo: str | Path) -> str:
    """Returns a hash of all Python files in a folder, by their names and content."""
    digest, repo = hashlib.blake2b(digest_size=16), Path(repo).expanduser()
    for file in sorted(repo.rglob("*.py")):
        digest.update(file.relative_to(repo).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
