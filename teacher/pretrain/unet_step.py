"""One pass of the UNet forwards and backwards, in plain steps or as a CUDA graph."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

WARM_UP = 4
"""Passes before the graph is recorded, in which libraries choose their algorithms."""


class UNetStep:
    """Computes the loss of a UNet, and the gradients of its weights and of the prompts.

    The weights' gradients are set, not added to.

    Args:
        unet: to train.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet

    def __call__(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Runs one batch.

        Args:
            noisy: (B, C, s, s) latents.
            timesteps: (B,) int64.
            prompts: (B, L, D).
            target: like ``noisy``.

        Returns:
            The mean squared error, and its gradient (B, L, D) with respect to the prompts; neither has a graph.
        """
        self.unet.zero_grad(set_to_none=True)
        leaf = prompts.detach().requires_grad_()
        loss = self._backward(noisy, timesteps, leaf, target)
        assert leaf.grad is not None
        return loss, leaf.grad

    def _backward(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor, target: Tensor) -> Tensor:
        loss = F.mse_loss(self.unet(noisy, timesteps, prompts).sample.float(), target)
        loss.backward()
        return loss.detach()


class GraphedUNetStep(UNetStep):
    """The same as a CUDA graph, which spares a small network the time that launching its kernels takes.

    The graph is recorded at the first call, at that call's shapes and autocast. It holds the addresses of the weights and their
    gradients: weights may be overwritten in place, but gradients must not be set to None between calls. What a call returns is
    overwritten by the next.

    Args:
        unet: to train, on a CUDA device.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._loss = torch.zeros(())

    def __call__(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`UNetStep`.

        Raises:
            ValueError: when shapes differ from the first call's.
        """
        given = (noisy, timesteps, prompts.detach(), target)
        if self._graph is None:
            self._record(given)
        assert self._graph is not None
        for static, value in zip(self._inputs, given, strict=True):
            if static.shape != value.shape:
                raise ValueError(f"Expected {tuple(static.shape)}, as in the first step, but got {tuple(value.shape)}.")
            static.detach().copy_(value)
        self._graph.replay()
        gradient = self._inputs[2].grad
        assert gradient is not None
        return self._loss, gradient

    def _record(self, given: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(value.detach().clone() for value in given)
        self._inputs[2].requires_grad_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # A cache of weights cast to half precision would outlive the recording, and the weights change.
        kind, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", dtype=kind, enabled=enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._forget()
                    self._backward(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self._forget()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._loss = self._backward(*self._inputs)

    def _forget(self) -> None:
        self.unet.zero_grad(set_to_none=True)
        self._inputs[2].grad = None
