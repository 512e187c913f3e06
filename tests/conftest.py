"""How the tests are spread over processes, and what several share: small pairs, miniatures of pipelines, a browser.

Large libraries are imported where they are used: the process that only hands the tests out needs none of them.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser, browser_page  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from distill.core.types import PairBatch
    from distill.data.pairs import AnnotatedImage

# Read when huggingface_hub is imported; else tests of what is missing wait for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]

MAX_PROCESSES = 4
"""Each process holds up to three GiB."""
TOGETHER = "tests/test_distill/test_export/"
"""A folder whose files stay in one process: they share exports, which take ten seconds each."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spreads whole folders of tests over processes, one thread each, where the command does not say how.

    A file stays in one process, which shares its fixtures, and so do the files of :data:`TOGETHER`. Without pytest-xdist,
    with ``-n 0``, for single files, under a debugger, with ``-s`` and on a card (``-m gpu``), all tests run in one process.
    """
    option = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if option.numprocesses == "auto" and not option.usepdb:
        option.numprocesses = min(available, MAX_PROCESSES)  # by itself it counts physical cores: one of two threads
    if option.numprocesses is None and not (option.usepdb or option.capture == "no" or option.markexpr == "gpu"):
        folders = any(Path(config.invocation_params.dir, name.partition("::")[0]).is_dir() for name in config.args)
        if folders and available > 1 and option.dist == "no" and not option.tx:
            option.numprocesses = min(available, MAX_PROCESSES)
    if option.numprocesses:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if option.dist == "no":
            option.dist, option.loadscopereorder = "loadfile", False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Hands out whole files, those of :data:`TOGETHER` as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(super()._split_scope(nodeid))

    return Files(config, log) if config.option.dist == "loadfile" else None


def _scope(file: str) -> str:
    return TOGETHER if file.startswith(TOGETHER) else file


def pytest_configure() -> None:
    """Lets Python search for reference cycles less often, which takes an eighth of the time of an import or an export."""
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what is marked ``gpu`` where there is no card; in several processes the longest files come first."""
    on_cards = [item for item in items if item.get_closest_marker("gpu")]
    if on_cards and not _has_card():
        for item in on_cards:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if hasattr(config, "workerinput"):
        slow = Counter(_scope(item.nodeid.partition("::")[0]) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[_scope(item.nodeid.partition("::")[0])])


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs beside the repository; tests that want it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    return folder


def pair_of(n: int = 3, size: int = 32, seed: int = 0, threshold: str = "bbox") -> PairBatch:
    import torch

    from distill.data.pairs import AnnotatedImage, make_pair

    random = torch.Generator().manual_seed(seed)

    def image(name: str) -> AnnotatedImage:
        return AnnotatedImage(
            image=torch.rand(3, size, size, generator=random),
            keypoints=torch.rand(n, 2, generator=random) * size,
            visible=torch.ones(n, dtype=torch.bool),
            bbox=torch.tensor([2.0, 4.0, size - 2.0, size - 4.0]),
            original_size=(size, size),
            category="thing",
            id=name,
            hash=f"{name}-{seed}",
        )

    return make_pair(image("source"), image("target"), threshold)  # type: ignore[arg-type]


class Pairs:
    """A few pairs in memory."""

    name, split, threshold = "few", "test", "bbox"

    def __init__(self, items: list[PairBatch]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> PairBatch:
        return self.items[index]


@pytest.fixture
def make_pairs():
    return pair_of


@pytest.fixture
def few() -> Pairs:
    return Pairs([pair_of(n, seed=n) for n in (3, 1, 4, 2)])


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of Stable Diffusion 1.x's architecture, random and small: 64 px, 8 x 8 latents, one layer a block in place of two."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    )
    folder = tmp_path_factory.mktemp("sd1")
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
