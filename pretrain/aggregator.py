"""Aggregators: the features of a slide in, one vector of the slide out.

One protocol: `forward(features_TF) -> (pooled, attention_T)`. `pooled` is [D], or [T, D] where the heads must judge every
tile (max-pool MIL); `attention_T` sums to 1 over the tiles, or is None. `num_features` is D. T >= 1.

Shape suffixes: T tiles, F feature width, D width of the slide vector, B tiles of a block, H heads, L landmarks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pretrain.config import AggregatorConfig


def build_aggregator(config: AggregatorConfig, num_features: int) -> "GatedAttention | Mean | Max | TransMIL":
    """A new aggregator with random weights for features of width `num_features`."""
    if config.name == "gma":
        return GatedAttention(
            num_features,
            config.hidden_size,
            config.gate_size,
            config.num_hidden_layers,
            config.dropout,
            config.block_tiles,
        )
    if config.name == "transmil":
        return TransMIL(num_features, config.hidden_size, config.dropout)
    return Mean(num_features) if config.name == "mean" else Max(num_features)


class Mean(nn.Module):
    """The mean of the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features_TF: Tensor) -> tuple[Tensor, Tensor | None]:
        return features_TF.mean(0), None


class Max(nn.Module):
    """Max-pool MIL (Campanella et al. 2019): hands on every tile; for each task the best-scoring tile decides."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features_TF: Tensor) -> tuple[Tensor, Tensor | None]:
        return features_TF, None


class GatedAttention(nn.Module):
    """Gated MIL attention (Ilse et al. 2018) in the shapes of the authors' code: F -> 512 -> 512, gates 384, Xavier.

    In training, blocks of `block_tiles` tiles are recomputed in the backward pass: at 45,056 tiles this keeps the hidden
    vectors (92 MB) but not the dozen arrays between them and the scores (900 MB). The numbers do not change.
    """

    def __init__(
        self, num_features: int, hidden_size: int = 512, gate_size: int = 384, num_hidden_layers: int = 2,
        dropout: float = 0.25, block_tiles: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = hidden_size
        self.block_tiles = block_tiles
        layers: list[nn.Module] = []
        for index in range(num_hidden_layers):
            width = num_features if index == 0 else hidden_size
            layers += [nn.Linear(width, hidden_size), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.content = nn.Sequential(nn.Linear(hidden_size, gate_size), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(hidden_size, gate_size), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(gate_size, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features_TF: Tensor) -> tuple[Tensor, Tensor | None]:
        blocks = [self._block(block_BF) for block_BF in torch.split(features_TF, self.block_tiles)]
        hidden_TD = torch.cat([hidden_BD for hidden_BD, _ in blocks])
        attention_T = torch.cat([score_B for _, score_B in blocks]).softmax(0)
        return attention_T @ hidden_TD, attention_T

    def _block(self, block_BF: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and torch.is_grad_enabled():
            return checkpoint(self._hidden_and_score, block_BF, use_reentrant=False)
        return self._hidden_and_score(block_BF)

    def _hidden_and_score(self, block_BF: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BD = self.hidden(block_BF)
        return hidden_BD, self.score(self.content(hidden_BD) * self.gate(hidden_BD))[:, 0]


class TransMIL(nn.Module):
    """TransMIL (Shao et al. 2021): two layers of Nystrom attention around a convolutional position encoding (PPEG).

    The tiles are laid out in a square in slide order, its end filled up with the first tiles, as published.
    """

    def __init__(self, num_features: int, hidden_size: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.num_features = hidden_size
        self.project = nn.Sequential(nn.Linear(num_features, hidden_size), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, hidden_size))
        self.first_norm, self.second_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.first = NystromAttention(hidden_size, num_landmarks=hidden_size // 2, dropout=dropout)
        self.second = NystromAttention(hidden_size, num_landmarks=hidden_size // 2, dropout=dropout)
        self.position = nn.ModuleList(
            nn.Conv2d(hidden_size, hidden_size, size, padding=size // 2, groups=hidden_size) for size in (7, 5, 3)
        )
        self.last_norm = nn.LayerNorm(hidden_size)

    def forward(self, features_TF: Tensor) -> tuple[Tensor, Tensor | None]:
        side = math.ceil(math.sqrt(len(features_TF)))
        hidden_TD = self.project(features_TF)
        hidden_TD = torch.cat([hidden_TD, hidden_TD[: side * side - len(hidden_TD)]])
        hidden = torch.cat([self.class_token, hidden_TD])
        hidden = hidden + self.first(self.first_norm(hidden))
        grid = hidden[1:].T.reshape(1, -1, side, side)
        grid = grid + sum(layer(grid) for layer in self.position)
        hidden = torch.cat([hidden[:1], grid.flatten(2)[0].T])
        hidden = hidden + self.second(self.second_norm(hidden))
        return self.last_norm(hidden)[0], None


class NystromAttention(nn.Module):
    """Self-attention linear in T through landmarks (Xiong et al. 2021), with a depthwise convolution on the values."""

    def __init__(self, size: int, num_landmarks: int, num_heads: int = 8, dropout: float = 0.25) -> None:
        super().__init__()
        self.num_heads, self.num_landmarks = num_heads, num_landmarks
        self.scale = (size // num_heads) ** -0.5
        self.to_qkv = nn.Linear(size, 3 * size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(size, size), nn.Dropout(dropout))
        self.local = nn.Conv2d(num_heads, num_heads, (33, 1), padding=(16, 0), groups=num_heads, bias=False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        num_tokens, size = hidden_TD.shape
        pad = (
            -num_tokens % self.num_landmarks
        )  # zeros in front, so that every landmark is a mean of equally many tokens
        padded = functional.pad(hidden_TD, (0, 0, pad, 0))
        query, key, value = (
            part.unflatten(1, (self.num_heads, -1)).transpose(0, 1) for part in self.to_qkv(padded).chunk(3, 1)
        )
        query = query * self.scale
        query_HLd = query.unflatten(1, (self.num_landmarks, -1)).mean(2)
        key_HLd = key.unflatten(1, (self.num_landmarks, -1)).mean(2)
        to_landmarks = (query @ key_HLd.transpose(1, 2)).softmax(-1)
        between = (query_HLd @ key_HLd.transpose(1, 2)).softmax(-1)
        from_landmarks = (query_HLd @ key.transpose(1, 2)).softmax(-1)
        mixed = to_landmarks @ pseudo_inverse(between) @ (from_landmarks @ value) + self.local(value[None])[0]
        output: Tensor = self.to_out(mixed.transpose(0, 1).reshape(-1, size))
        return output[-num_tokens:]


def pseudo_inverse(matrix_HLL: Tensor, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse by the cubically convergent iteration of Razavi et al. 2014, as in Nystromformer."""
    absolute = matrix_HLL.abs()
    start = matrix_HLL.transpose(1, 2) / (absolute.sum(-1).amax() * absolute.sum(-2).amax())
    identity = torch.eye(matrix_HLL.shape[-1], dtype=matrix_HLL.dtype, device=matrix_HLL.device)
    inverse = start
    for _ in range(iterations):
        product = matrix_HLL @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse
