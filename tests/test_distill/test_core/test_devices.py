"""Each of several processes on one machine takes its own GPU; the counts of a machine with GPUs are made up."""

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.device_parser import _parse_gpu_ids
from lightning.pytorch.strategies import DDPStrategy

from distill.cli.config import compose
from distill.cli.processes import is_many, on_own_device
from distill.core.devices import own_gpu
from distill.core.errors import ConfigError
from distill.system.environment import choose_device, fast_precision
from distill.system.memory import PeakMemory, device_of
from teacher.pipeline import as_device


@pytest.fixture
def machine(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)

    def of(count: int, rank: int | None = None, variable: str = "LOCAL_RANK") -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        if rank is not None:
            monkeypatch.setenv(variable, str(rank))

    return of


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_LOCALID"])
@pytest.mark.parametrize(
    ("count", "rank", "expected"),
    [(4, 0, "cuda:0"), (4, 3, "cuda:3"), (4, 6, "cuda:2"), (1, 3, "cuda"), (4, None, "cuda"), (1, None, "cuda")],
)
def test_a_process_takes_the_gpu_of_its_number(machine, variable, count, rank, expected):
    machine(count, rank, variable)
    assert own_gpu() == choose_device("auto") == choose_device("cuda") == expected
    assert as_device("auto") == as_device("cuda") == torch.device(expected)


def test_what_names_a_device_is_taken_by_every_process(machine):
    machine(4, 3)
    assert choose_device("cuda:1") == "cuda:1" and as_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == "cpu" and as_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device=cuda:4 names but torch .* finds 4"):
        choose_device("cuda:4")


@pytest.mark.parametrize(
    ("devices", "of_each"),
    [
        ("[2,3]", ["cuda:2", "cuda:3"]),
        ("[3]", ["cuda:3"]),
        ("'2,'", ["cuda:2"]),
        ("'2,3'", ["cuda:2", "cuda:3"]),
        ("-1", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("'-1'", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("2", ["cuda:0", "cuda:1"]),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "label"])
def test_a_process_takes_the_gpu_that_lightning_gives_it(machine, monkeypatch, verb, devices, of_each):
    cfg = compose(verb, [f"trainer.devices={devices}"])
    for rank, expected in enumerate(of_each):
        machine(4, rank)
        own = on_own_device(cfg)
        assert own.device == own.teacher.device == expected, "which every part of the process is told"
        # What Lightning itself makes of it, on a machine with these GPUs.
        strategy = DDPStrategy(cluster_environment=LightningEnvironment())
        wanted = cfg.trainer.devices if isinstance(cfg.trainer.devices, int | str) else list(cfg.trainer.devices)
        gpus = _parse_gpu_ids(-1 if wanted == "auto" else wanted, include_cuda=True)
        strategy.parallel_devices = [torch.device("cuda", gpu) for gpu in gpus]
        assert str(strategy.root_device) == expected
    assert cfg.device == "auto" and is_many(cfg) == (len(of_each) > 1)


def test_a_device_that_is_named_goes_before_the_list(machine):
    machine(4, 1)
    for device in ("cuda:0", "cpu"):
        assert on_own_device(compose("label", ["trainer.devices=[2,3]", f"device={device}"])).device == device
    machine(0, 1)
    assert on_own_device(compose("fit", ["trainer.devices=2"])).device == "cpu"


@pytest.mark.parametrize("devices", ["[2,2]", "[a]", "[]", "[-2,1]", "'1,x'", "some", "-2"])
def test_lists_of_gpus_that_cannot_be_are_refused(machine, devices):
    machine(4)
    with pytest.raises(
        ConfigError, match="Expected trainer.devices as a number of processes, a list of GPUs or -1 but got"
    ):
        on_own_device(compose("fit", [f"trainer.devices={devices}"]))


def test_gpus_that_are_not_there_are_refused(machine):
    machine(2)
    with pytest.raises(ConfigError, match=r"trainer.devices=\[1, 2\] names but torch finds 2; leave \[2\] out"):
        on_own_device(compose("fit", ["trainer.devices=[1,2]"]))


def test_without_a_gpu_every_process_takes_the_cpu(machine):
    machine(0, 1)
    assert choose_device("auto") == "cpu" and as_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds 0"):
        choose_device("cuda")


class Holder:
    def __init__(self, **fields) -> None:
        vars(self).update(fields)


def test_memory_is_told_of_the_device_that_does_the_work(machine, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(str(device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(str(device)) or 3 * 2**20)
    machine(2)
    with PeakMemory("cuda:1") as memory:
        pass
    assert memory.mib == 3 and asked == ["cuda:1", "cuda:1"]
    with PeakMemory("cpu") as memory:
        pass
    assert memory.mib > 50 and len(asked) == 2, "of the process, although there is a GPU"
    on_meta = torch.nn.Linear(2, 2, device="meta")
    assert device_of(on_meta, "cpu") == device_of(Holder(model=on_meta), "cpu") == torch.device("meta")
    assert device_of(Holder(device=torch.device("cuda", 1)), "cpu") == torch.device("cuda:1")
    assert device_of(Holder(teacher=Holder(device="cpu")), "cuda") == torch.device("cpu")
    assert device_of(Holder(model="a folder"), "cuda") == device_of(Holder(), "cuda") == torch.device("cuda")


@pytest.mark.parametrize(
    ("accelerator", "told", "has_gpu", "precision"),
    [
        ("auto", {"avx512_bf16": True}, False, "bf16-mixed"),
        ("cpu", {"amx_bf16": True}, True, "bf16-mixed"),
        ("auto", {"avx512_bf16": True}, True, "32-true"),
        ("gpu", {"avx512_bf16": True}, True, "32-true"),
        ("auto", {"avx512_bf16": False}, False, "32-true"),
        ("cpu", {}, False, "32-true"),
    ],
)
def test_a_processor_trains_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch, accelerator, told, has_gpu, precision
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert fast_precision(accelerator) == precision


def test_without_word_of_the_processor_training_is_in_single_precision(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_precision("cpu") == "32-true"
