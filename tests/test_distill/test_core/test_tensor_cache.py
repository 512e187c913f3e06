import torch

from distill.core.tensor_cache import GIB, TensorCache, tensor_bytes


def test_a_cache_is_bounded_by_the_bytes_of_its_tensors():
    cache = TensorCache(1000 / GIB)
    for name in "abc":
        cache[name] = [torch.zeros(50), (torch.zeros(50), 7)]  # 400 bytes
    assert "a" not in cache and "b" in cache and cache.currsize == 800
    _ = cache["b"]
    cache["d"] = torch.zeros(100)
    assert "b" in cache and "c" not in cache


def test_a_value_larger_than_the_bound_is_not_kept_and_a_bound_of_zero_keeps_nothing():
    cache, none = TensorCache(100 / GIB), TensorCache(0.0)
    cache["a"] = torch.zeros(5)
    cache["b"] = torch.zeros(50)
    none["a"] = torch.zeros(1)
    assert "a" in cache and "b" not in cache and not none


def test_bytes_are_counted_in_nested_sequences():
    assert tensor_bytes([torch.zeros(3, dtype=torch.float16), (torch.zeros(2), 5)]) == 3 * 2 + 2 * 4
