"""BatchNorm when a slide is encoded in chunks, on several ranks, and partly twice.

per_chunk     each chunk is normalised by its own statistics, as on each rank of the paper
frozen        the running statistics normalise and do not move; scale and shift still train
synchronised  the statistics of chunk i are those of chunk i on all ranks of the slide together

Running statistics move once per chunk: the second pass over a chunk uses `statistics_held`.

A chunk holds tiles of one slide, so per_chunk training takes away what the tiles of a slide have in common; evaluation, with
statistics pooled over slides, does not. With few slides that can decide over the result. On 75 training slides of at most 24
real patches (a small ResNet, 6 epochs) patients not seen were scored at an AUC of 0.43 with running statistics, 0.44 with
statistics measured anew over all training slides, and 0.74 with each slide's own, as in training; on another split at 0.86,
0.85 and 0.82. Measuring anew is therefore no remedy, and is not offered. `frozen` with pretrained weights, or an encoder
without BatchNorm, keeps training and evaluation alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.config import BatchNormPolicy


def norm_layers(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def set_mode(model: nn.Module, policy: BatchNormPolicy, training: bool) -> None:
    """Put the model in training or evaluation mode; with policy frozen its BatchNorm layers stay in evaluation mode."""
    model.train(training)
    if training and policy == "frozen":
        for layer in norm_layers(model):
            layer.eval()


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Running statistics do not move inside the block; batches are still normalised by their own statistics."""
    layers = [layer for layer in norm_layers(model) if layer.training and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Running means, variances and batch counts, in the order of the layers."""
    return [
        tensor
        for layer in norm_layers(model)
        for tensor in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        if tensor is not None
    ]


def synchronise(model: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """The model with every BatchNorm layer replaced by one that shares its statistics over `group`.

    Names in the state dict do not change. torch's own SyncBatchNorm refuses CPU tensors, so this one is written out.
    With `group` None (one encoder rank) the layer is kept, which gives the same numbers.
    """
    if isinstance(model, _BatchNorm):
        return model if group is None else SynchronisedBatchNorm(model, group)
    for name, child in model.named_children():
        replaced = synchronise(child, group)
        if replaced is not child:
            setattr(model, name, replaced)
    return model


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks of a group; takes over the weights, buffers and activation of `source`."""

    def __init__(self, source: _BatchNorm, group: dist.ProcessGroup) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.drop = getattr(source, "drop", nn.Identity())  # timm's BatchNormAct2d ends with these two
        self.act = getattr(source, "act", nn.Identity())
        self.training = source.training
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"synchronised BatchNorm: input has {input.dim()} dimensions; it needs at least 2")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self._finish(super().forward(input))
        normal, mean_C, variance_C, count = _GroupNormalise.apply(input, self.eps, self.group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None, "running statistics come with their count"
                self.num_batches_tracked.add_(1)
                factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
                self.running_mean.mul_(1 - factor).add_(mean_C.to(self.running_mean.dtype), alpha=factor)
                self.running_var.mul_(1 - factor).add_(unbiased_C.to(self.running_var.dtype), alpha=factor)
        if self.affine:
            shape = (1, -1) + (1,) * (input.dim() - 2)
            normal = normal * self.weight.to(normal.dtype).view(shape) + self.bias.to(normal.dtype).view(shape)
        return self._finish(normal)

    def _finish(self, output: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(output))
        return activated


class _GroupNormalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over the batches of all ranks: two all-reduces forward, one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
        sums = torch.cat([wide.sum(axes), wide.new_tensor([wide.numel() / max(wide.shape[1], 1)])])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        mean_C = sums[:-1] / count
        centred = wide - mean_C.view(shape)
        squares_C = centred.square().sum(axes)
        dist.all_reduce(squares_C, group=group)
        variance_C = squares_C / count
        inverse_C = (variance_C + eps).rsqrt()
        normal = centred * inverse_C.view(shape)
        ctx.save_for_backward(normal, inverse_C, count)
        ctx.group, ctx.dtype = group, x.dtype
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        return normal.to(x.dtype), mean_C, variance_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normal, inverse_C, count = ctx.saved_tensors
        gradient = gradients[0].to(normal.dtype)
        axes = [axis for axis in range(normal.dim()) if axis != 1]
        shape = (1, -1) + (1,) * (normal.dim() - 2)
        sums_2C = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        dist.all_reduce(sums_2C, group=ctx.group)
        means_2C = sums_2C / count
        result = inverse_C.view(shape) * (gradient - means_2C[0].view(shape) - normal * means_2C[1].view(shape))
        return result.to(ctx.dtype), None, None
