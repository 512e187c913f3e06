import pytest
import torch

from distill.core.tensor_cache import TensorCache
from teacher import PromptOptimization
from teacher.adaptive_batch import AdaptiveBatch

QUICK = {"steps": 2, "embeddings": 2, "crop_pool": 5, "crops": 2, "layers": ["up@1/4"], "prompt_length": 7} | {
    "queries": "conditioned",
    "consensus": 0.0,
}


def test_a_batch_is_halved_until_it_fits_and_all_rows_are_done_once():
    done = []

    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError("too many")
        done.extend(range(rows.start, rows.stop))
        return list(range(rows.start, rows.stop))

    batch = AdaptiveBatch(16)
    assert sum(batch.run(work, 10), []) == list(range(10)) == done
    assert batch.size == 2  # 10, 5, 2


def test_what_was_found_to_fit_is_kept():
    sizes = []

    def work(rows: slice) -> None:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    batch = AdaptiveBatch(8)
    batch.run(work, 8)
    batch.run(work, 8)
    assert sizes == [8, 4, 4, 4, 4]


def test_a_single_row_that_does_not_fit_is_an_error_and_so_is_any_other():
    def full(rows: slice) -> None:
        raise torch.OutOfMemoryError("full")

    def broken(rows: slice) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError):
        AdaptiveBatch(4).run(full, 4)
    with pytest.raises(RuntimeError, match="shapes differ"):
        AdaptiveBatch(4).run(broken, 4)


def test_the_teacher_answers_the_same_when_memory_runs_out_on_the_way(sd1_folder, make_pairs, monkeypatch):
    pair = make_pairs(3, size=64)
    expected = PromptOptimization(str(sd1_folder), device="cpu", **QUICK).match_pairs(pair)
    teacher = PromptOptimization(str(sd1_folder), device="cpu", **QUICK)
    record = teacher.features.model.unet.record
    refused = []

    def small(prefix, crop_of, prompts):
        if len(prompts) > 2:
            refused.append(len(prompts))
            raise torch.OutOfMemoryError("full")
        return record(prefix, crop_of, prompts)

    monkeypatch.setattr(teacher.features.model.unet, "record", small)
    answer = teacher.match_pairs(pair)
    assert refused == [6, 6, 3] and teacher.batch.size == 1
    torch.testing.assert_close(answer.heatmap, expected.heatmap, atol=1e-4, rtol=1e-3)


def test_the_caches_are_emptied_before_a_batch_is_halved():
    cache, sizes = TensorCache(1.0), []
    cache["a"] = torch.zeros(4)
    batch = AdaptiveBatch(4, (cache,))

    def work(rows: slice) -> None:
        sizes.append(rows.stop - rows.start)
        if cache:
            raise torch.OutOfMemoryError("full")

    batch.run(work, 4)
    assert sizes == [4, 4] and batch.size == 4 and not cache


def test_a_single_row_gets_a_second_try_without_caches():
    cache = TensorCache(1.0)
    cache["a"] = torch.zeros(4)

    def work(rows: slice) -> str:
        if cache:
            raise torch.OutOfMemoryError("full")
        return "done"

    assert AdaptiveBatch(1, (cache,)).run(work, 1) == ["done"]
