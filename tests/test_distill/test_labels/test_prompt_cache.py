"""Optimised prompts are stored, and serve targets that are labelled later."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save

from distill.core.errors import ConfigError, LabelError
from distill.labels.cached import Cached
from distill.labels.prompt_cache import PromptCacheStore, _checksum
from distill.matchers.oracle import Oracle
from teacher import PromptOptimization

SETTINGS = {"steps": 2, "embeddings": 1, "crops": 1, "crop_pool": 4, "device": "cpu"}
SETTINGS |= {"queries": "conditioned", "consensus": 0.0, "layers": ["up@1/4", "up@1/2"]}


def teacher(folder) -> PromptOptimization:
    return PromptOptimization(str(folder), prompt_length=4, **SETTINGS)


def test_a_further_target_needs_no_further_optimisation_and_gets_the_same_answer(
    tmp_path, sd1_folder, make_pairs, monkeypatch
):
    first, second = make_pairs(2, seed=1), make_pairs(2, seed=2)
    second = second._replace(src_img=first.src_img, src_kps=first.src_kps, src_hash=first.src_hash)
    cached = Cached(tmp_path, teacher(sd1_folder), prompt_cache=True)
    cached.match_pairs(first)
    cached.flush()
    expected = teacher(sd1_folder).match_pairs(second)
    later = teacher(sd1_folder)
    monkeypatch.setattr(later.prompts, "_optimise", lambda *_: pytest.fail("optimised again"))
    answer = Cached(tmp_path, later, prompt_cache=True).match_pairs(second)
    torch.testing.assert_close(answer.trg_kps, expected.trg_kps, rtol=0, atol=0)


def test_prompts_are_read_as_they_were_written(tmp_path):
    store = PromptCacheStore(tmp_path, {"steps": "2"})
    store["a", 0.25, 0.5] = torch.arange(6.0).reshape(1, 2, 3), 1
    store["b", 0.1, 0.9] = torch.ones(1, 2, 3), 0
    store.flush()
    again = PromptCacheStore(tmp_path, {"steps": "2"})
    assert sorted(again) == [("a", 0.25, 0.5), ("b", 0.1, 0.9)] and ("a", 0.25, 0.6) not in again
    embedding, token = again["a", 0.25, 0.5]
    np.testing.assert_array_equal(embedding.numpy(), np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    assert token == 1


def test_prompts_of_another_teacher_and_damaged_ones_are_named(tmp_path):
    store = PromptCacheStore(tmp_path, {"steps": "2"})
    store["a", 0.25, 0.5] = torch.ones(1, 2, 3), 0
    store.flush()
    with pytest.raises(LabelError, match=r"steps \(2 in the store, 3 asked for\)"):
        PromptCacheStore(tmp_path, {"steps": "3"})
    (path,) = (tmp_path / "prompt_cache").iterdir()
    content = bytearray(path.read_bytes())
    place = content.index(np.ones(6, np.float32).tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(LabelError, match=f"{path.name} is damaged"):
        _ = PromptCacheStore(tmp_path, {"steps": "2"})["a", 0.25, 0.5]
    path.write_bytes(content[:-5])
    with pytest.raises(LabelError, match=f"{path.name} but it cannot be read"):
        PromptCacheStore(tmp_path, {"steps": "2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": np.zeros((1, 1, 2, 3), np.int32)}, "columns are of other types"),
        ({"token": np.zeros(1, np.int32)}, "columns are of other types"),
        ({"place": np.zeros((1, 2), np.float32)}, "columns are of other types"),
        ({"image": np.zeros(1, np.int64)}, "columns are of other types"),
        ({"embedding": np.full((1, 1, 2, 3), np.nan, np.float32)}, "is damaged"),
    ],
)
def test_prompts_of_a_stranger_are_refused_in_one_line(tmp_path, changes, message):
    store = PromptCacheStore(tmp_path, {"steps": "2"})
    store["a", 0.25, 0.5] = torch.ones(1, 2, 3), 0
    store.flush()
    (path,) = (tmp_path / "prompt_cache").iterdir()
    with safe_open(path, "np") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()} | changes  # noqa: SIM118 - no dictionary
        about = file.metadata()
    columns["checksum"] = np.array([_checksum(columns, ["a"], 0)], np.uint32)
    path.write_bytes(save(columns, about))
    with pytest.raises(LabelError, match=message) as caught:
        _ = PromptCacheStore(tmp_path, {"steps": "2"})["a", 0.25, 0.5]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda e, t: (e[..., :7], t), lambda e, t: (e.double(), t), lambda e, t: (e, 10**9)]
)
def test_kept_prompts_that_cannot_be_this_teachers_are_named(sd1_folder, make_pairs, change):
    pairs, cache = make_pairs(1, seed=1), {}
    first = teacher(sd1_folder)
    first.use_prompt_cache(cache)
    first.match_pairs(pairs)
    second = teacher(sd1_folder)
    second.use_prompt_cache({name: change(*prompt) for name, prompt in cache.items()})
    with pytest.raises(
        LabelError, match=r"Expected kept prompts of \(1, 4, \d+\) float32 with one of 1 tokens but got"
    ):
        second.match_pairs(pairs)


def test_a_teacher_without_prompts_cannot_store_any(tmp_path):
    with pytest.raises(ConfigError, match="Oracle has no use_prompt_cache"):
        Cached(tmp_path, Oracle(), prompt_cache=True)
