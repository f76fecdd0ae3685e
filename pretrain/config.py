"""Configuration sections of pretraining. Imports no torch, so that `--help` and `--dry-run` answer at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ingest.config import Section

Layout = Literal["single", "dedicated", "shared"]
BatchNormPolicy = Literal["per_chunk", "frozen", "synchronised"]
Precision = Literal["float32", "bfloat16", "float16"]


class StepConfig(Section):
    """How one slide is spread over ranks and over time."""

    layout: Layout = "single"  # dedicated: rank 0 of a team only aggregates (the paper); shared: it also encodes
    num_teams: int = Field(default=1, ge=1)  # slides in flight at once; the ranks are divided evenly between teams
    resident_tiles: int = Field(default=512, ge=0)  # tiles per rank whose graph is kept; the rest is encoded twice
    chunk_tiles: int = Field(default=64, ge=1)  # tiles per forward pass
    batch_norm: BatchNormPolicy = "per_chunk"  # the paper trains without synchronisation
    precision: Precision = "float32"  # of the encoder; the aggregator and the loss always stay in float32
    channels_last: bool = True  # memory order of convolutions; same numbers
    compile: bool = False  # torch.compile of the encoder
    timeout_seconds: float = Field(default=1800.0, gt=0)  # how long a rank waits for another one, not for a step


class EncoderConfig(Section):
    """The network that turns a tile into a feature vector."""

    name: str = "resnet18"  # any timm model; ResNet18 is the breast cancer experiment of the paper
    weights: Path | None = None  # a checkpoint file (.safetensors, .pt, .pth) or a timm folder; none: random weights
    frozen: bool = False  # train the aggregator alone
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # learning rate factor per layer group towards the input
    drop_rate: float = Field(default=0.0, ge=0, lt=1)
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1)  # stochastic depth
    image_size_px: int | None = Field(default=None, gt=0)  # side of a tile, for encoders that must know it (ViT)


class AggregatorConfig(Section):
    """The network that turns the features of a slide into one vector."""

    name: Literal["gma", "mean", "max", "transmil"] = "gma"
    hidden_size: int = Field(default=512, gt=0)  # GMA, TransMIL; size "big" of the paper's code
    num_hidden_layers: int = Field(default=2, ge=1)  # GMA; F -> 512 -> 512 as in the authors' published code
    gate_size: int = Field(default=384, gt=0)  # GMA; size "big" of the paper's code
    dropout: float = Field(default=0.25, ge=0, lt=1)  # GMA, TransMIL
    block_tiles: int = Field(default=4096, gt=0)  # GMA computes its gates in blocks of so many tiles to save memory


class TaskConfig(Section):
    """One target column `y_<name>` of the manifest and the head that predicts it."""

    name: str = "cancer"
    kind: Literal["classes", "number"] = "classes"
    num_classes: int = Field(default=2, ge=2)  # labels are 0 .. num_classes - 1
    class_weights: tuple[float, ...] | None = None  # one factor of the loss per class
    weight: float = Field(default=1.0, gt=0)  # share of this task in the loss

    @model_validator(mode="after")
    def _one_weight_per_class(self) -> "TaskConfig":
        if self.class_weights is not None:
            if self.kind != "classes":
                raise ValueError(f"task {self.name}: class_weights need kind = classes")
            if len(self.class_weights) != self.num_classes:
                raise ValueError(
                    f"task {self.name}: {len(self.class_weights)} class_weights for {self.num_classes} classes"
                )
            if min(self.class_weights) < 0:
                raise ValueError(f"task {self.name}: class_weights must not be negative")
        return self


class SampleConfig(Section):
    """Which tissue tiles of a slide take part in a step."""

    mode: Literal["all", "random", "paper", "grid", "cluster"] = "all"
    num_tiles: int | None = Field(default=None, gt=0)  # K; none only with mode = all
    clusters: Path | None = None  # table of `python -m pretrain cluster`; only with mode = cluster

    @model_validator(mode="after")
    def _what_the_mode_needs_is_given(self) -> "SampleConfig":
        if (self.num_tiles is None) != (self.mode == "all"):
            raise ValueError(f"mode = {self.mode}: num_tiles is given exactly when mode is not all")
        if (self.clusters is None) != (self.mode != "cluster"):
            raise ValueError(
                f"mode = {self.mode}: clusters is given exactly with mode = cluster; make it with `python -m pretrain cluster`"
            )
        return self


class DataConfig(Section):
    """Which slides: a manifest, the vault with their places on disk, and the split to train by."""

    manifest: Path = Path("manifests/cohort")
    vault: Path = Path("vault/cohort")  # holds locations.parquet; apart from the manifest, never shared
    scheme: str = "holdout"
    fold: int = Field(default=0, ge=0)
    slides_per_epoch: float = Field(default=0.5, gt=0, le=1)  # share of the training slides; 50 % in the paper
    reader: Literal["auto", "tiff", "openslide", "cucim"] = "auto"
    reader_threads: int = Field(default=1, ge=1)  # per reader process, of which each encoder rank has one
    slides_ahead: int = Field(default=2, ge=1)  # slides that the reader holds ready in shared memory
    ahead_gib: float | None = Field(default=None, gt=0)  # most shared memory for them, per rank; none: what is free
    cache: Path | None = None  # folder on a fast local disk for decoded tiles; as sensitive as the slides
    cache_gib: float = Field(default=200.0, gt=0)  # most that the cache takes; a tile of 224 px is 147 KiB


class AugmentConfig(Section):
    """Changes to training tiles, on the device, each with its own strength."""

    symmetry: bool = True  # one of the 8 flips and turns of the square
    colour: float = Field(default=0.1, ge=0, lt=1)  # brightness, contrast, saturation by up to this share
    stain: float = Field(default=0.05, ge=0, lt=1)  # amounts of haematoxylin, eosin and DAB by up to this share
    blur: float = Field(default=0.1, ge=0, le=1)  # chance of a tile to be blurred


class OptimConfig(Section):
    """AdamW with warm-up and a cosine."""

    learning_rate: float = Field(default=5e-5, gt=0)  # peak; Campanella et al. 2024, breast cancer detection
    aggregator_learning_rate: float | None = Field(default=None, gt=0)  # none: as the encoder, as in the paper
    weight_decay: float = Field(default=0.01, ge=0)  # not on norms and biases
    warmup_epochs: float = Field(default=1.0, ge=0)
    final_learning_rate_share: float = Field(default=0.01, ge=0, le=1)  # of the peak, at the end of the cosine
    clip_norm: float = Field(default=1.0, gt=0)  # common norm of the gradients of encoder, aggregator and heads
    slides_per_update: int = Field(default=1, ge=1)  # slides of a team before the weights move; 1 in the paper
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # average of the weights; it is judged and exported


class RunConfig(Section):
    """How long, where to, and what is kept."""

    folder: Path = Path("runs/default")
    num_epochs: int = Field(default=30, ge=1)  # the paper's best validation AUC came after 30
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    select_by: Literal["tune_auc", "last"] = "tune_auc"  # which checkpoint is `best`; the test part is never looked at
    stop_after_epochs: int | None = Field(default=None, ge=1)  # without a better tune AUC
    save_every_steps: int | None = Field(default=None, ge=1)  # beside the end of every epoch
    keep_checkpoints: int = Field(default=2, ge=1)


class PretrainConfig(Section):
    """Everything `python -m pretrain` can be told."""

    data: DataConfig = DataConfig()
    run: RunConfig = RunConfig()
    encoder: EncoderConfig = EncoderConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    sample: SampleConfig = SampleConfig()
    augment: AugmentConfig = AugmentConfig()
    step: StepConfig = StepConfig()
    optim: OptimConfig = OptimConfig()
