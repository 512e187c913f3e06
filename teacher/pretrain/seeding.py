"""Randomness that depends on a seed and a step's number only, so that an interrupted training goes on exactly."""

import numpy as np
import torch

AUTOENCODER, DIFFUSION = 6, 5
"""Streams of random numbers, one for each stage."""


def step_generator(device: torch.device, seed: int, step: int, stream: int) -> torch.Generator:
    """Returns a generator on ``device`` for one step of a training.

    Args:
        device: of the random numbers.
        seed: of the training.
        step: its number.
        stream: :data:`AUTOENCODER` or :data:`DIFFUSION`, which draw different numbers.
    """
    number = int(np.random.SeedSequence([seed, step, stream]).generate_state(1)[0])  # torch reads 32 bits on a CPU
    return torch.Generator(device).manual_seed(number)
