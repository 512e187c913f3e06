"""The parts of the small Stable Diffusion's training."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from distill.core.errors import ConfigError
from distill.data.datasets.shapes import CaptionedShapes
from teacher.pretrain import (
    AutoencoderTraining,
    DiffusionTraining,
    FiniteWeightAveraging,
    LatentBatches,
    LatentBlocks,
    LatentStore,
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from teacher.pretrain import autoencoder as first_stage
from teacher.pretrain.latents import BLOCK, encode, random_crops
from teacher.pretrain.unet_step import GraphedUNetStep, UNetStep

CAPTIONS = ["a red dog on grass", "a blue car on snow"]


def small_unet(decoder=(False, True), **options):
    return build_unet(8, 4, [16, 32], [False, True], decoder, 24, **options).eval()


def training(**options) -> DiffusionTraining:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CAPTIONS, 8)
    settings = {"drop_caption": 0.25, "lr": 1e-3, "warmup": 2, "decay": 0.5, **options}
    parts = (small_unet(), build_text_encoder(tokenizer, 24, 1), tokenizer, build_autoencoder(8, 4, 2))
    return DiffusionTraining(*parts, build_scheduler(), **settings)


class Steps(torch.utils.data.IterableDataset):
    """Latents by step; those of the steps in ``broken`` are not finite."""

    def __init__(self, broken: set[int] = frozenset(), value: float = float("nan")) -> None:
        self.broken, self.value = broken, value

    def __iter__(self):
        for step in range(1000):
            latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(step)).half()
            tokens = torch.arange(4 * 8).reshape(4, 8) % 10
            yield {"latents": latents * self.value if step in self.broken else latents, "tokens": tokens}


def fit(module: DiffusionTraining, steps: int, data: Steps, averaging: FiniteWeightAveraging, *more) -> Trainer:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[averaging, *more], enable_model_summary=False, **options
    )
    trainer.fit(module, DataLoader(data, batch_size=None))
    return trainer


# Words.


def test_every_word_is_one_token_and_each_process_gives_it_the_same_number(capsys):
    code = (
        "from distill.data.datasets.shapes.scene import sample_scene\n"
        "from teacher.pretrain import build_tokenizer\n"
        "captions = [sample_scene(0, i, 'colourful').caption for i in range(300)]\n"
        "tokenizer = build_tokenizer(captions, 24)\n"
        "assert all(len(tokenizer(c).input_ids) == len(c.split()) + 2 for c in captions)\n"
        "assert tokenizer.decode(tokenizer(captions[0]).input_ids, skip_special_tokens=True).strip() == captions[0]\n"
        "print([tokenizer(c).input_ids for c in captions[:20]])"
    )
    exec(code, {})
    first = capsys.readouterr().out
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert first == second.stdout and len(first) > 1000


def test_words_with_marks_and_digits_are_known_letter_by_letter():
    captions = ["a photo of a cat, sitting on a chair.", "3 cats in 2d", "the owner's two-wheeled Café bike!"]
    tokenizer = build_tokenizer(captions, 24)
    for caption in captions:
        tokens = tokenizer(caption).input_ids
        assert tokens.count(tokenizer.unk_token_id) == 1, "the end mark alone, which is also the unknown token"
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert whole.replace(" ", "") == caption.lower().replace(" ", "")
    assert tokenizer.tokenize("cat, 3 2d") == ["cat</w>", ",</w>", "3</w>", "2</w>", "d</w>"]


# UNets.


def test_a_unet_grows_from_a_smaller_one_and_answers_as_it_did(tmp_path):
    torch.manual_seed(0)
    smaller = small_unet()
    smaller.save_pretrained(tmp_path / "unet")
    larger = small_unet(decoder=(True, True), init_from=str(tmp_path))
    latents, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    with torch.no_grad():
        torch.testing.assert_close(larger(latents, 10, prompts).sample, smaller(latents, 10, prompts).sample)


def test_a_unet_that_does_not_fit_is_refused(tmp_path):
    small_unet(decoder=(True, True)).save_pretrained(tmp_path / "unet")
    with pytest.raises(ConfigError, match=r"diffusion\.init_from.*no place there, such as up_blocks\.1"):
        small_unet(init_from=str(tmp_path))


def test_a_step_gives_the_gradients_of_the_whole_loss():
    torch.manual_seed(0)
    unet = small_unet()
    for parameter in unet.parameters():  # its attention changes nothing at first
        torch.nn.init.normal_(parameter, std=0.05)
    noisy, target, prompts = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24, requires_grad=True)
    expected = (unet(noisy, torch.tensor([3, 500]), prompts).sample - target).square().mean()
    wanted = torch.autograd.grad(expected, [prompts, *unet.parameters()])
    unet.conv_in.weight.grad = torch.ones_like(unet.conv_in.weight)  # of the step before
    loss, gradient = UNetStep(unet)(noisy, torch.tensor([3, 500]), prompts, target)
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad and float(gradient.abs().max()) > 0
    for found, right in zip([gradient, *(p.grad for p in unet.parameters())], wanted, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.gpu
def test_the_cuda_graph_computes_what_the_plain_step_does():
    torch.manual_seed(0)
    unet = small_unet().cuda()
    plain, graphed = UNetStep(unet), GraphedUNetStep(unet)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        noisy, target = (torch.randn(2, 4, 8, 8, generator=generator).cuda() for _ in range(2))
        prompts, timesteps = torch.randn(2, 7, 24, generator=generator).cuda(), torch.tensor([3 + seed, 500]).cuda()
        loss, gradient = graphed(noisy, timesteps, prompts, target)
        found = [loss.clone(), gradient.clone(), *(p.grad.clone() for p in unet.parameters())]
        kept = [p.grad for p in unet.parameters()]
        loss, gradient = plain(noisy, timesteps, prompts, target)
        right = [loss, gradient, *(p.grad for p in unet.parameters())]
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
        for parameter, gradient in zip(unet.parameters(), kept, strict=True):
            parameter.grad = gradient  # the graph writes there
    with pytest.raises(ValueError, match="as in the first step"):
        graphed(noisy[:1], timesteps[:1], prompts[:1], target[:1])


# First stage.


def test_the_autoencoder_is_measured_where_it_is(monkeypatch):
    seen = {}

    def measure(name: str, answer: float):
        def spy(autoencoder: AutoencoderTiny, images: torch.Tensor) -> float:
            seen[name] = (autoencoder.device.type, images.device.type)
            return answer

        return spy

    monkeypatch.setattr(first_stage, "latent_scale", measure("scale", 0.5))
    monkeypatch.setattr(first_stage, "reconstruction_psnr", measure("psnr", 30.0))
    module = AutoencoderTraining(build_autoencoder(8, 4, 2).to("meta"), 32, 0.05, 1e-3)
    assert module.finish(torch.rand(2, 3, 32, 32)) == 30.0
    assert seen == {"scale": ("meta", "meta"), "psnr": ("meta", "meta")}
    assert module.autoencoder.config.scaling_factor == 0.5


# Latents.


@pytest.fixture
def parts(tmp_path):
    torch.manual_seed(0)
    pictures = CaptionedShapes(32, 0, "easy", batch_size=1)
    tokenizer = build_tokenizer(pictures.batch(0, 64)["caption"], 24)
    autoencoder = build_autoencoder(8, 4, 2)
    autoencoder.register_to_config(scaling_factor=2.0)

    def store(folder: str = "latents", capacity: int = 4 * BLOCK, num_workers: int = 0, **about) -> LatentStore:
        blocks = LatentBlocks(pictures, autoencoder, tokenizer, zoom=0.8, seed=0)
        return LatentStore(tmp_path / folder, blocks, capacity, num_workers, about)

    return pictures, autoencoder, tokenizer, store


def test_the_store_holds_the_latents_of_random_crops_and_their_captions(parts):
    pictures, autoencoder, tokenizer, make = parts
    store = make()
    store.ensure(BLOCK + 1)
    batch = pictures.batch(BLOCK, BLOCK)
    crops = random_crops(batch["image"], 0.8, np.random.default_rng([0, BLOCK, 3]))
    found = store.rows(np.arange(BLOCK, 2 * BLOCK))
    torch.testing.assert_close(found["latents"], encode(autoencoder, crops).half(), atol=2e-3, rtol=2e-3)
    assert found["tokens"].tolist() == tokenizer(batch["caption"], padding="max_length").input_ids


def test_crops_show_most_of_a_picture():
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    crops = random_crops(ramp, 0.8, np.random.default_rng(0))
    shown = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert shown.min() > 0.77 and shown.max() <= 1 and shown.median() > 0.93


def test_processes_make_the_same_latents_in_their_places(parts):
    *_, make = parts
    here, there = make("a"), make("b", num_workers=2)
    for store in (here, there):
        store.ensure(4 * BLOCK)
    there.close()
    rows = np.arange(4 * BLOCK)
    torch.testing.assert_close(here.rows(rows)["latents"], there.rows(rows)["latents"], atol=1e-3, rtol=1e-3)
    assert torch.equal(here.rows(rows)["tokens"], there.rows(rows)["tokens"])


def test_what_is_stored_is_not_made_again(parts, monkeypatch):
    *_, make = parts
    make().ensure(2 * BLOCK)
    asked = []
    again = LatentBlocks.__getitem__
    monkeypatch.setattr(LatentBlocks, "__getitem__", lambda self, i: asked.append(self.blocks[i]) or again(self, i))
    make().ensure(3 * BLOCK)
    assert asked == [2]


def test_latents_of_other_settings_are_refused(parts):
    *_, make = parts
    make(zoom=0.8)
    with pytest.raises(ConfigError, match="other settings or another autoencoder; remove that folder"):
        make(zoom=0.7)


def test_damaged_files_of_latents_are_refused(parts, tmp_path):
    *_, make = parts
    make()
    (tmp_path / "latents" / "tokens.npy").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="damaged.*remove that folder"):
        make()


def test_a_disk_that_is_too_small_for_the_latents_is_named_before_they_are_made(parts, tmp_path, monkeypatch):
    *_, make = parts
    monkeypatch.setattr("shutil.disk_usage", lambda folder: (10**6, 10**6, 1000))
    with pytest.raises(ConfigError, match=r"Expected \d+ MiB.*diffusion\.latents\.store\.capacity"):
        make()
    assert not (tmp_path / "latents" / "latents.npy").exists()


def test_batches_depend_on_the_step_alone_and_come_from_a_growing_stock(parts):
    *_, make = parts
    store = make(capacity=3 * BLOCK)
    batches = iter(LatentBatches(store, 4, at_start=BLOCK, fresh=BLOCK, seed=0))
    first = [next(batches)["latents"] for _ in range(3)]
    assert store._made.tolist() == [True] * 3
    resumed = iter(LatentBatches(make(capacity=3 * BLOCK), 4, at_start=BLOCK, fresh=BLOCK, seed=0, first_step=1))
    for expected in first[1:]:
        assert torch.equal(next(resumed)["latents"], expected)
    other = next(iter(LatentBatches(store, 4, at_start=BLOCK, fresh=BLOCK, seed=1)))["latents"]
    assert not torch.equal(other, first[0])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"at_start": 0}, {"fresh": -1}])
def test_numbers_of_latents_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least"):
        LatentBatches(None, **{"batch_size": 1, "at_start": 1, "fresh": 1, "seed": 0, **wrong})  # type: ignore[arg-type]


# Second stage.


def test_a_share_of_the_captions_is_dropped():
    module, tokens = training(drop_caption=0.15), torch.full((100, 8), 5)
    *_, timesteps, told = module._noised(torch.zeros(100, 4, 8, 8), tokens, step=3)
    empty = module.tokenizer([""], padding="max_length").input_ids[0]
    assert told[:15].tolist() == [empty] * 15 and torch.equal(told[15:], tokens[15:])
    assert timesteps.min() >= 0 and timesteps.max() < 1000


def test_timesteps_of_captioned_pictures_are_logit_normal_where_asked():
    module, tokens = training(drop_caption=0.2, logit_normal=0.7), torch.full((50_000, 8), 5)
    *_, timesteps, _ = module._noised(torch.zeros(50_000, 4, 1, 1), tokens, step=3)
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        below = (timesteps < place * 1000).float()
        # The normal distribution function of the logit, and for pictures without caption that of a squared uniform number.
        normal = 0.5 * (1 + math.erf((math.log(place / (1 - place)) - 0.2) / math.sqrt(2)))
        assert below[10_000:].mean() == pytest.approx(0.7 * normal + 0.3 * place, abs=0.01)
        assert below[:10_000].mean() == pytest.approx(math.sqrt(place), abs=0.02)


def test_noise_depends_on_seed_and_step_alone():
    latents, tokens = torch.zeros(4, 4, 8, 8), torch.zeros(4, 8, dtype=torch.long)

    def noisy(seed: int, step: int) -> torch.Tensor:
        return training(seed=seed)._noised(latents, tokens, step)[0]

    assert torch.equal(noisy(0, 5), noisy(0, 5))
    assert not torch.equal(noisy(0, 5), noisy(0, 6)) and not torch.equal(noisy(0, 5), noisy(1, 5))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_whose_gradients_are_not_finite_changes_nothing(optimizer):
    module = training(optimizer=optimizer)
    before = {}

    class Watch(FiniteWeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *args):
            before[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]
            super().on_train_batch_end(trainer, pl_module, *args)

    fit(module, 4, Steps(broken={1}), Watch(0.5, every=1))
    unchanged = [all(map(torch.equal, before[i], before[i + 1])) for i in (1, 2, 3)]
    assert unchanged == [True, False, False]
    assert all(p.isfinite().all() for p in module.parameters())


def poisoning(at: int):
    class Poisoning(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if trainer.global_step == at:
                next(pl_module.unet.parameters()).data.fill_(float("nan"))

    return Poisoning()


def test_weights_that_are_not_finite_go_back_to_the_last_finite_average_at_a_lower_rate():
    module, kept = training(), {}

    class Watch(FiniteWeightAveraging):
        def _check(self, trainer, pl_module):
            super()._check(trainer, pl_module)
            kept[trainer.global_step] = (
                [p.detach().clone() for p in pl_module.parameters()],
                self._averages()[0].clone(),
            )

    averaging = Watch(0.5, every=1, check_every=2)
    fit(module, 6, Steps(), averaging, poisoning(at=2))
    assert module.lr_scale == pytest.approx(0.7) and module.restarted_at == 4
    assert averaging.state_dict()["lr_scale"] == pytest.approx(0.7)
    assert torch.equal(kept[4][0][0], kept[2][1]), "the weights of step 4 are the average of step 2"
    assert all(p.isfinite().all() for p in module.parameters())


def test_weights_that_were_never_finite_end_the_training():
    module = training()
    next(module.unet.parameters()).data.fill_(float("nan"))
    with pytest.raises(ConfigError, match="Expected finite weights"):
        fit(module, 2, Steps(), FiniteWeightAveraging(0.5, every=1, check_every=1))


def test_training_lowers_the_loss():
    class Same(Steps):
        def __iter__(self):
            batch = next(super().__iter__())
            while True:
                yield batch

    module = training(lr=3e-3, warmup=5, drop_caption=0.0)
    batch = next(iter(Same()))
    given = batch["latents"].float(), batch["tokens"], torch.randn(4, 4, 8, 8), torch.tensor([100, 300, 600, 900])
    with torch.no_grad():
        before = module.denoising_loss(*given)
    fit(module, 120, Same(), FiniteWeightAveraging(0.9, every=2))
    with torch.no_grad():
        assert module.denoising_loss(*given) < 0.7 * before


def test_the_rate_warms_up_stays_and_falls():
    module = training(lr=1.0, warmup=4, decay=0.5)
    trainer = fit(module, 20, Steps(), FiniteWeightAveraging(0.5))
    rates = [module.learning_rate(step) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[10] == 1.0
    assert rates[15] == pytest.approx(0.5) and rates[19] == pytest.approx(0.1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_decay_of_squared_gradients_is_a_setting():
    module = training(beta2=0.9995)
    assert training().configure_optimizers().param_groups[0]["betas"] == (0.9, 0.99)
    assert module.configure_optimizers().param_groups[0]["betas"] == (0.9, 0.9995)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_muon_moves_the_matrices_inside_the_unet_and_adamw_the_rest(monkeypatch):
    """As torch's own Muon, which takes matrices only, moves each of them flattened. It computes in bfloat16 on all processors."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    module = training(optimizer="muon", lr=1e-2)
    names = {name: p for name, p in module.named_parameters()}
    inner = {
        n
        for n, p in names.items()
        if n.startswith("unet.") and p.dim() > 1 and "conv_in" not in n and "conv_out" not in n
    }
    assert {"unet.mid_block.resnets.0.conv1.weight", "unet.time_embedding.linear_1.weight"} < inner
    assert not any("text_encoder" in name or "bias" in name for name in inner)
    copies = {
        name: torch.nn.Parameter((p.flatten(1) if name in inner else p).detach().clone()) for name, p in names.items()
    }
    muon = torch.optim.Muon(
        [copies[name] for name in inner], lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [p for n, p in copies.items() if n not in inner], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01
    )
    optimizer = module.configure_optimizers()
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for name, p in names.items():
            p.grad = torch.randn(p.shape, generator=generator)
            copies[name].grad = p.grad.view_as(copies[name]).clone()
        for each in (optimizer, muon, adamw):
            each.step()
    for name, p in names.items():
        torch.testing.assert_close(
            p, copies[name].view_as(p), atol=1e-4, rtol=1e-3, msg=lambda words, name=name: f"{name}: {words}"
        )


def test_an_autoencoder_that_goes_on_with_more_steps_has_the_schedule_of_these(tmp_path):
    """It failed after the steps that the checkpoint was to have."""
    images = DataLoader([{"image": torch.rand(1, 3, 32, 32)}] * 4, batch_size=None)  # type: ignore[arg-type]

    def trained(steps, stop, resume=None):
        rates = []

        class Rates(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])
                trainer.should_stop = len(rates) == stop

        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "callbacks": [Rates()]}
        trainer = Trainer(max_steps=steps, accelerator="cpu", enable_model_summary=False, **options)
        trainer.fit(AutoencoderTraining(build_autoencoder(8, 4, 2), 32, 0.05, 1e-3), images, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return rates

    whole = trained(4, None)
    begun = trained(3, 1)
    rest = trained(4, None, tmp_path / "last.ckpt")
    assert len(begun + rest) == 4 and rest[1:] == whole[2:]
