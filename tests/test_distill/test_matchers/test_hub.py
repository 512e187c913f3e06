"""A toy torch.hub repository on disk, as a matcher and as a teacher."""

from pathlib import Path

import pytest
import torch

from distill.cli.config import compose, instantiate
from distill.core.errors import ConfigError, DataError
from distill.core.protocols import Fingerprinted
from distill.matchers.hub import HubMatcher, checked_answer

HUBCONF = '''
"""A toy repository."""
import pathlib
import torch

dependencies = ["torch"]
pathlib.Path(__file__).with_name("ran").touch()


class Shift(torch.nn.Module):
    def __init__(self, by, whole):
        super().__init__()
        self.by, self.whole = torch.nn.Parameter(torch.tensor(float(by))), whole

    def forward(self, src_img, trg_img, src_kps):
        points = (src_kps + self.by).clamp(0, trg_img.shape[-1])
        if not self.whole:
            return points
        return points, torch.full(points.shape[:2], 0.25), torch.ones(*points.shape[:2], 3, 3)


def shift(by=2.0, whole=False):
    return Shift(by, whole)


def broken():
    raise RuntimeError("weights are missing")


def leaves():
    raise SystemExit(3)


def fails():
    def ask(src_img, trg_img, src_kps):
        raise ValueError("too small")
    return ask


def large():
    def ask(src_img, trg_img, src_kps):
        raise torch.OutOfMemoryError("out of memory")
    return ask


def in_place():
    return lambda src_img, trg_img, src_kps: src_kps.add_(src_img.mul_(0).mean()).double()


class Outside:
    def __call__(self, src_img, trg_img, src_kps):
        return src_kps

    def fingerprint(self):
        return {"file": 7}


def outside():
    return Outside()


class Extra(Shift):
    def get_extra_state(self):
        return {"more": 1}

    def set_extra_state(self, state):
        pass


def extra():
    return Extra(2.0, False)
'''
IMAGE, POINTS = torch.rand(1, 3, 32, 32), torch.tensor([[[4.0, 8.0], [20.0, 6.0]]])


@pytest.fixture
def repo(tmp_path) -> Path:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    return tmp_path


def test_code_does_not_run_without_being_trusted(repo):
    for trusted in (False, None, "yes"):
        with pytest.raises(ConfigError, match="run_code=true .* will run on this machine"):
            HubMatcher(str(repo), "shift", run_code=trusted)  # type: ignore[arg-type]
    assert not (repo / "ran").exists()
    HubMatcher(str(repo), "shift", run_code=True)
    assert (repo / "ran").exists()


@pytest.mark.parametrize("entry", ["convolution", "one_image"])
def test_a_network_of_another_form_is_refused_before_it_is_asked(repo, entry):
    more = (
        "def convolution():\n    return torch.nn.Conv2d(6, 2, 3)\n\ndef one_image():\n    return lambda image: image\n"
    )
    (repo / "hubconf.py").write_text(HUBCONF + more)
    with pytest.raises(ConfigError, match=f"what {entry} of .* to be called with src_img, trg_img, src_kps .* adapter"):
        HubMatcher(str(repo), entry, run_code=True)


def test_points_alone_get_a_heatmap_whose_peak_is_at_the_answer(repo):
    answer = HubMatcher(str(repo), "shift", run_code=True, heatmap_side=16)(IMAGE, IMAGE, POINTS)
    torch.testing.assert_close(answer.trg_kps, POINTS + 2)
    assert answer.confidence.tolist() == [[1.0, 1.0]] and answer.heatmap.shape == (1, 2, 16, 16)
    for point, heatmap in zip(answer.trg_kps[0], answer.heatmap[0], strict=True):
        row, column = divmod(int(heatmap.argmax()), 16)
        assert abs((column + 0.5) * 2 - point[0]) <= 1 and abs((row + 0.5) * 2 - point[1]) <= 1


def test_a_whole_answer_is_passed_on(repo):
    answer = HubMatcher(str(repo), "shift", run_code=True, options={"by": 1.0, "whole": True})(IMAGE, IMAGE, POINTS)
    assert answer.confidence.tolist() == [[0.25, 0.25]] and answer.heatmap.shape == (1, 2, 3, 3)


def test_the_fingerprint_tells_code_weights_and_options_apart(repo):
    def fingerprint(**options):
        matcher = HubMatcher(str(repo), "shift", run_code=True, options=options)
        assert isinstance(matcher, Fingerprinted)
        return matcher.fingerprint()

    plain, other = fingerprint(), fingerprint(by=3.0)
    assert fingerprint() == plain and {key for key in plain if plain[key] != other[key]} == {"options", "weights"}
    (repo / "part.py").write_text("x = 1\n")
    assert {key for key, value in fingerprint().items() if plain[key] != value} == {"code"}


def test_a_teacher_is_built_by_the_configuration(repo, make_pairs):
    asked = ["teacher=hub", f"teacher.repo={repo}", "teacher.entry=shift", "teacher.run_code=true"]
    teacher = instantiate(compose("label", asked).teacher)
    pair = make_pairs(2, size=32)
    assert teacher(pair.src_img, pair.trg_img, pair.src_kps).trg_kps.shape == (1, 2, 2)


def test_what_is_not_there_or_fails_is_named(repo, tmp_path):
    with pytest.raises(ConfigError, match="folder with hubconf.py in repo but found none"):
        HubMatcher(str(tmp_path / "none"), "shift", run_code=True)
    with pytest.raises(ConfigError, match="entry nothing of .*hubconf.py"):
        HubMatcher(str(repo), "nothing", run_code=True)
    with pytest.raises(ConfigError, match="RuntimeError: weights are missing; correct entry or options"):
        HubMatcher(str(repo), "broken", run_code=True)
    with pytest.raises(ConfigError, match="repo and entry of a torch.hub repository but got None and 'shift'"):
        HubMatcher(None, "shift", run_code=True)
    with pytest.raises(ConfigError, match="SystemExit: 3; correct entry or options"):
        HubMatcher(str(repo), "leaves", run_code=True)
    for side in (0, 1025, 2.5, "8"):
        with pytest.raises(ConfigError, match="heatmap_side to be a whole number from 1 to 1024"):
            HubMatcher(str(repo), "shift", run_code=True, heatmap_side=side)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"options of shift by name but got \[1\]"):
        HubMatcher(str(repo), "shift", run_code=True, options=[1])  # type: ignore[arg-type]


def test_a_network_that_fails_when_it_is_asked_is_named_and_lack_of_memory_is_passed_on(repo):
    with pytest.raises(
        DataError, match=r"answer of fails of .* images \(1, 3, 32, 32\) .* but got ValueError: too small"
    ):
        HubMatcher(str(repo), "fails", run_code=True)(IMAGE, IMAGE, POINTS)
    with pytest.raises(torch.OutOfMemoryError):
        HubMatcher(str(repo), "large", run_code=True)(IMAGE, IMAGE, POINTS)


def test_what_is_asked_stays_as_it_is_and_an_answer_is_in_single_precision(repo):
    points, image = POINTS.clone(), IMAGE.clone()
    answer = HubMatcher(str(repo), "in_place", run_code=True)(image, IMAGE, points)
    assert torch.equal(points, POINTS) and torch.equal(image, IMAGE)
    assert [value.dtype for value in answer] == [torch.float32] * 3


def test_something_without_weights_of_torch_may_tell_its_own(repo):
    (repo / "folder.py").mkdir()  # no file of code
    told = HubMatcher(str(repo), "outside", run_code=True).fingerprint()
    assert told["weights"] == "none" and told["own.file"] == "7"


def test_two_repositories_may_have_modules_of_one_name(tmp_path):
    answers = []
    for number in (1, 2, 1):
        folder = tmp_path / str(number)
        (folder / "hub_parts").mkdir(parents=True, exist_ok=True)
        (folder / "hub_parts" / "place.py").write_text(f"BY = {number}\n")
        (folder / "hubconf.py").write_text(
            "from hub_parts.place import BY\ndef move():\n    return lambda src_img, trg_img, src_kps: src_kps + BY\n"
        )
        answers.append(HubMatcher(str(folder), "move", run_code=True)(IMAGE, IMAGE, POINTS).trg_kps)
    for number, answer in zip((1, 2, 1), answers, strict=True):
        torch.testing.assert_close(answer, POINTS + number)


def test_a_modules_further_state_is_no_weight(repo):
    matcher = HubMatcher(str(repo), "extra", run_code=True)
    assert matcher.fingerprint()["weights"] == HubMatcher(str(repo), "shift", run_code=True).fingerprint()["weights"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(1, 3, 2), r"to return points \(1, 2, 2\), .* but got \(1, 3, 2\)"),
        ({"points": POINTS}, "but got dict"),
        ((POINTS, torch.ones(1, 2)), "but got a tuple of Tensor, Tensor"),
        ([POINTS], "but got a list of Tensor"),
        (POINTS > 0, "dense tensors of real numbers but one is torch.bool"),
        (
            (POINTS, torch.ones(1, 2), torch.ones(1, 2, 4, 4).to_sparse()),
            "one is torch.float32, torch.sparse_coo on cpu",
        ),
        (POINTS.to("meta"), "on meta"),
        ((POINTS, torch.ones(1, 3), torch.ones(1, 2, 4, 4)), r"confidence \(1, 2\) .* but got \(1, 3\)"),
        ((POINTS, torch.ones(1, 2), torch.ones(1, 2, 4)), r"heatmap \(B, N, h, w\)"),
        ((POINTS / 0, torch.ones(1, 2), torch.ones(1, 2, 4, 4)), "NaN or infinity"),
        ((POINTS, 2 * torch.ones(1, 2), torch.ones(1, 2, 4, 4)), r"confidences in \[0, 1\]"),
        ((POINTS, torch.ones(1, 2), -torch.ones(1, 2, 4, 4)), "heatmap of .* whose best cell is at least 0"),
    ],
)
def test_answers_that_break_the_contract_are_refused(answer, message):
    with pytest.raises(DataError, match=message):
        checked_answer(answer, POINTS, (32, 32))
