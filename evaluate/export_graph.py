"""The encoder as a program that needs no timm: ONNX, and torch.export's .pt2. Checked against the training code.

Both take tiles as they are read, uint8 RGB [batch, 3, S, S] with any batch, and normalise inside, so that no caller can
get mean and deviation wrong. Their kernels are not those of training, hence a tolerance instead of equal bits.
Shape suffixes: K tiles, F feature width.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ingest.errors import ConfigError, InputError
from pretrain.augment import normalise

TOLERANCE = 1e-4  # of the largest feature; ResNet18 gives 1e-6, a ViT-S 4e-6, a wrong normalisation 0.3 and more
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT_BYTES = 2 * 1024**3  # of a single-file model: protobuf


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """How near a program comes to the training code.

    Attributes:
        difference: largest absolute difference as a share of the largest feature.
    """

    file: str
    runtime: str
    num_tiles: int
    difference: float

    @property
    def sentence(self) -> str:
        return (
            f"{self.file} in {self.runtime}: largest difference {self.difference:.1e} of the largest feature on "
            f"{self.num_tiles} tiles (tolerance {TOLERANCE:.0e}), in one batch and tile by tile"
        )


class TilesToFeatures(nn.Module):
    """uint8 tiles [K, 3, S, S] to features [K, F]: normalisation and encoder in one."""

    def __init__(self, encoder: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, tiles: Tensor) -> Tensor:
        features: Tensor = self.encoder(normalise(tiles.float() / 255, self.mean, self.std))
        return features


def require_onnx() -> None:
    """Raises ConfigError when the packages of the extra are missing, before anything is computed."""
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--onnx: needs {', '.join(missing)}; install them with pip install -e '.[export]'")


def write_torch_program(model: TilesToFeatures, tiles_K3HW: Tensor, features_KF: Tensor, path: Path) -> GraphParity:
    """`path` (.pt2) for `torch.export.load(path).module()`.

    Args:
        tiles_K3HW: uint8, K >= 2. features_KF: of the training code on them.
    Raises:
        InputError: the program differs by more than TOLERANCE; or the encoder cannot be exported.
    """
    try:
        program = torch.export.export(
            model.eval(), (tiles_K3HW,), dynamic_shapes={"tiles": {0: torch.export.Dim("batch")}}
        )
    except Exception as error:  # torch raises many kinds for code that it cannot trace
        raise _cannot("--torch-export", error) from error
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return _compare(path.name, f"torch {torch.__version__}", loaded, tiles_K3HW, features_KF)


def write_onnx(
    model: TilesToFeatures, tiles_K3HW: Tensor, features_KF: Tensor, path: Path, facts: Mapping[str, str]
) -> GraphParity:
    """`path` (.onnx, one file) with input `tiles` and output `features`; `facts` go into its metadata.

    Args, Raises: as `write_torch_program`; ConfigError: the weights do not fit one file.
    """
    import onnx
    import onnxruntime

    if (size := sum(value.numel() * value.element_size() for value in model.state_dict().values())) > ONNX_LIMIT_BYTES:
        raise ConfigError(f"--onnx: {size / 1024**3:.1f} GiB of weights, one file holds 2 GiB; leave --onnx out")
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter about its own parts
            program = torch.onnx.export(
                model.eval(), (tiles_K3HW,), dynamo=True, external_data=False, input_names=["tiles"],
                output_names=["features"], dynamic_shapes={"tiles": {0: torch.export.Dim("batch")}}, verbose=False,
            )  # fmt: skip
            assert program is not None, "dynamo=True gives a program"
            program.save(path, external_data=False)
    except Exception as error:  # as above
        raise _cannot("--onnx", error) from error
    document = onnx.load(path)
    for name, value in facts.items():
        entry = document.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.save(document, path)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return _compare(
        path.name, f"onnxruntime {onnxruntime.__version__}",
        lambda tiles: torch.from_numpy(session.run(["features"], {"tiles": tiles.numpy()})[0]), tiles_K3HW, features_KF,
    )  # fmt: skip


def _compare(
    file: str, runtime: str, program: Callable[[Tensor], Tensor], tiles_K3HW: Tensor, features_KF: Tensor
) -> GraphParity:
    with torch.no_grad():
        whole_KF = program(tiles_K3HW)
        single_KF = torch.cat([program(tile[None]) for tile in tiles_K3HW])
    scale = features_KF.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = max(((theirs_KF - features_KF).abs().max() / scale).item() for theirs_KF in (whole_KF, single_KF))
    if not difference <= TOLERANCE:  # also when it is not a number
        raise InputError(
            f"export: {file} differs from the training code's features by {difference:.3g} of the largest feature, more than "
            f"{TOLERANCE:g}; nothing was written; leave this program out"
        )
    return GraphParity(file=file, runtime=runtime, num_tiles=len(tiles_K3HW), difference=difference)


def _cannot(option: str, error: Exception) -> InputError:
    return InputError(
        f"export {option}: torch cannot turn this encoder into a program ({type(error).__name__}: "
        f"{(str(error).splitlines() or [''])[0]}); leave {option} out"
    )
