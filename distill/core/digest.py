"""A name for the weights of a network."""

import hashlib

import torch
from torch import nn


def state_digest(network: nn.Module) -> str:
    """Returns 32 hexadecimal digits that name the weights and buffers of ``network``."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # further state of a foreign module, which may be any object
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
