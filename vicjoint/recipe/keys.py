"""The keys of a recipe, as they are written: strict and typed. `Written` is what YAML holds; the program
works with the canonical `Recipe` that recipe.py makes of it."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vicjoint.files.paths import user_path
from vicjoint.recipe.file import plain


def _number(value):
    if isinstance(value, bool):  # Python, and so pydantic, counts true as 1
        raise PydanticCustomError("float_type", "a number")
    return value


def _whole(value):
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a whole number")
    return value


def _expanded(value: str) -> str:
    try:
        return str(user_path(value)) if value.startswith("~") else value
    except ValueError:
        raise PydanticCustomError("home_unknown", "a path without ~, since no home folder is known") from None


FolderPath = Annotated[str, AfterValidator(_expanded)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
TEXT, NUMBER, MAPPING = "<text>", "<number>", "<mapping>"  # in pydantic's error paths; not part of a key


class Component(BaseModel):
    """A registered component by name, with its options."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(description="registered name")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Branch(Section):
    modality: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[Component, Tag(MAPPING)],
        Discriminator(lambda value: MAPPING if isinstance(value, (dict, Component)) else TEXT),
    ] = Field(description="how views are read and batched: a name, or a component with options")
    encoder: Component = Field(description="an encoder registered for the modality")
    expander: list[Annotated[Whole, Field(gt=0)]] = Field(
        min_length=1, description="widths of the expander's layers; the last is the embedding's"
    )
    weights: Literal["own", "same", "ema"] = Field(
        "own", description="of b only: its own, a's (same), or a moving average of a's (ema)"
    )
    momentum: Number = Field(0.996, ge=0, le=1, description="of the moving average, with weights: ema")
    train: Literal["full", "expander", "lora", "frozen"] = Field(
        "full", description="what learns: all; only the expander; it and adapters in the encoder; or nothing"
    )
    lora_rank: Whole = Field(8, gt=0, description="of the adapters, with train: lora")
    lr_factor: Number = Field(1.0, gt=0, description="of the encoder's learning rate")
    weight_decay: Number | None = Field(None, ge=0, description="of the encoder; null: the optimizer's")
    layer_decay: Number = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from one block of a transformer to that below",
    )
    weights_from: FolderPath | None = Field(
        None,
        description="a run folder or an export whose encoder this one begins as; FOLDER:BRANCH: not of its"
        " first branch",
    )
    cache: Literal["features"] | None = Field(
        None,
        description="features: what an encoder that does not learn gives is computed once and kept on disk",
    )


class PairOfBranches(Section):
    a: str = Field(description="name of the branch that sees view a")
    b: str = Field(description="name of the branch that sees view b")
    pair: Component = Field(description="how two views are made of a sample")
    objective: Component | None = Field(None, description="the loss of this pair; null: the recipe's")
    source: Component | None = Field(None, description="where this pair's samples are; null: the recipe's")
    weight: Number = Field(1.0, gt=0, description="factor of this pair's loss")
    share: Annotated[
        Annotated[Literal["equal", "proportional"], Tag(TEXT)] | Annotated[Number, Field(gt=0), Tag(NUMBER)],
        Discriminator(lambda value: TEXT if isinstance(value, str) else NUMBER),
    ] = Field(
        "equal",
        description="of the steps: equal, the same as other pairs; proportional, by its number of batches (in"
        " all pairs or none); or a weight, beside which equal is 1",
    )


class Optim(Component):
    schedule: Component = Field(description="factor of the learning rate at each step")
    clip: Number | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")


class Train(Section):
    steps: Whole | None = Field(None, gt=0, description="optimizer steps; wins over epochs")
    epochs: Whole | None = Field(None, gt=0, description="passes over the source")
    batch_size: Whole = Field(
        ge=2, description="samples in a global batch, over all processes and accumulated parts"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the model; objectives always use fp32")
    seed: Whole = Field(0, ge=0, lt=2**32, description="of the weights, the order, crops and time windows")
    accumulate: Whole = Field(1, gt=0, description="parts in which a batch is computed")
    exact: bool = Field(
        True,
        description=(
            "with parts: the objective sees the whole batch, for one more forward pass; false: each part"
        ),
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="on several processes: ddp, each holds the whole model; fsdp, each a share of weights,"
        " gradients and optimizer state",
    )
    sync_batch_norm: bool = Field(
        True, description="on several processes: batch norm over all rows of a step; false: each its own"
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep a block's input alone and compute the rest again in the backward pass: the same"
        " numbers for less memory and more time",
    )
    compile: bool = Field(False, description="use torch.compile")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="at a loss or gradient that is not finite: stop, or leave out the step"
    )
    nonfinite_limit: Whole = Field(
        10, ge=0, description="with skip: steps that a run may leave out in all, before it stops"
    )
    timeout: Number = Field(
        600,
        gt=0,
        description="seconds that a process waits for the others in a step, where there are several",
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="where numbers are shown, too, while training"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_0_1(cls, data):
        """`tensorboard: true` of version 0.1 is `trackers: [tensorboard]`."""
        if not isinstance(data, dict) or "trackers" in data or not isinstance(data.get("tensorboard"), bool):
            return data
        others = {key: value for key, value in data.items() if key != "tensorboard"}
        return others | {"trackers": ["tensorboard"] if data["tensorboard"] else []}


class Data(Section):
    workers: Whole = Field(
        2, ge=0, description="processes that read data; 0: none beside the training process"
    )
    max_bad_fraction: Number = Field(
        0.01, ge=0, le=1, description="share of bad samples above which a run stops"
    )
    video_backend: Literal["auto", "decord", "nvdec", "pyav", "torchcodec"] = Field(
        "auto", description="reader of video files"
    )
    clips_per_open: Whole = Field(
        1,
        ge=1,
        description="clips that are read of a video in one pass, for as many batches; an epoch then has each"
        " record so many times",
    )
    frame_rate: Number = Field(
        25.0, gt=0, description="frames a second of videos that are folders of pictures, or tiffs"
    )
    timeout: Number | None = Field(
        300,
        gt=0,
        description="seconds after which a sample that is still being read counts as bad; null: no limit",
    )


class Evaluate(Section):
    every: Whole | None = Field(
        None, ge=0, description="steps between evaluations; null or 0: at the end only"
    )
    last: bool = Field(True, description="evaluate at the end; false: later, by python -m vicjoint.evaluate")
    probes: list[Component] = Field([], description="what is measured")
    explorer: Whole = Field(
        300,
        ge=0,
        description="about how many test items the page in the run's folder explorer shows, small copies of"
        " pictures and sounds included; 0: no page",
    )


class Checkpoint(Section):
    every: Whole = Field(200, gt=0, description="steps between checkpoints")
    keep: Whole = Field(2, gt=0, description="newest checkpoints that are kept")
    best: str | None = Field(
        None,
        description=(
            "PROBE/METRIC: the checkpoint with the model's largest value while training is kept too; "
            "-PROBE/METRIC: with the smallest"
        ),
    )
    may_change: list[Literal["length", "data"]] = Field(
        [],
        description=(
            "what may differ from the run in `out` that goes on: length, to train it longer; data, after "
            "records came or went"
        ),
    )


class Written(Section):
    """A recipe as it is written: of one pair (pair, a, b), or of several over named branches (branches,
    pairs)."""

    model_config = ConfigDict(extra="forbid", title="Recipe")

    name: str = Field(
        pattern=r"^\w[\w.+-]*$", description="names the folder below runs/: letters, digits and . _ + -"
    )
    imports: list[str] = Field([], description="modules to import first: they register components")
    out: FolderPath | None = Field(None, description="run folder; null: runs/<name>/<number>")
    source: Component | None = Field(None, description="where samples are")
    pair: Component | None = Field(None, description="how two views are made of a sample")
    a: Branch | None = Field(None, description="branch a")
    b: Branch | None = Field(
        None, description="branch b; with weights same or ema it may leave out what is a's"
    )
    branches: dict[str, Branch] | None = Field(
        None, min_length=1, description="branches by name, for several pairs; instead of a and b"
    )
    pairs: list[PairOfBranches] | None = Field(
        None, min_length=1, description="pairs of branches, trained in turn; instead of pair"
    )
    predictor: Component | None = Field(None, description="maps a's embedding to b's")
    objective: Component | None = Field(None, description="the loss")
    optim: Optim = Field(description="the optimizer, with its schedule and clip")
    train: Train = Field(description="length, batch and precision")
    data: Data = Field(Data(), description="reading")
    evaluate: Evaluate = Field(Evaluate(), description="probes, and when")
    checkpoint: Checkpoint = Field(Checkpoint(), description="saving")
    without_data: dict[str, Any] = Field(
        {}, description="overrides that apply where source.root is not given; used up by that"
    )
    announcement: str | None = Field(
        None, description="written by the program where without_data was applied"
    )

    def dump(self) -> dict:
        """Every key and value, in YAML's plain types; without the keys of the form (one pair, or several)
        that this recipe does not have."""
        optional = ("source", "pair", "a", "b", "branches", "pairs", "objective")
        data = {
            key: value
            for key, value in plain(self.model_dump()).items()
            if key not in optional or value is not None
        }
        for pair in data.get("pairs", []):
            for key in [key for key, value in pair.items() if value is None]:
                del pair[key]
        return data
