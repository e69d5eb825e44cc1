"""Recipes: one YAML file per experiment, checked as a whole before any work starts."""

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bevquant.data.world.settings import WorldSettings
from bevquant.errors import BevquantError
from bevquant.files import read_text
from bevquant.train.settings import DetectorSettings, TailSettings, TrainSettings


class TrainRecipe(BaseModel):
    """How a shipped float network is made: the world it learns from and the training.

    Attributes:
        name: name of the experiment, of its run folder and of the checkpoint.
        model: the network.
        world: the generated data set; its validation split gives the curves.
        train: the optimisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: Literal["bevfusion_small"]
    world: WorldSettings
    train: TrainSettings


class CameraRecipe(BaseModel):
    """How a shipped camera-only detector is made from a shipped network's image branch.

    Attributes:
        name: name of the experiment, of its run folder and of the checkpoint.
        model: the network.
        image_branch: the shipped network whose trained image backbone and neck it starts with.
        world: the generated data set; its validation split is measured.
        train: the optimisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: Literal["bevdepth4d_small", "petr_small"]
    image_branch: Literal["bevfusion_small", "bevdepth4d_small"] = "bevfusion_small"
    world: WorldSettings
    train: DetectorSettings


class TailRecipe(BaseModel):
    """How a shipped dense network is made from the shipped detector's encoder.

    Attributes:
        name: name of the experiment, of its run folder and of the checkpoint.
        model: the network.
        world: the generated data set, with labels; its validation split is measured.
        train: the optimisation of everything behind the fused map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: Literal["bevfusion_seg_small", "bevfusion_occ_small"]
    world: WorldSettings
    train: TailSettings

    @model_validator(mode="after")
    def _labelled(self) -> "TailRecipe":
        if not self.world.labels:
            raise ValueError("world.labels must be true: this network learns from labels")
        return self


R = TypeVar("R", bound=BaseModel)


def load_recipe(path: Path, kind: type[R]) -> R:
    """Read the recipe at ``path``.

    Raises:
        BevquantError: the file is missing, is not YAML, or has an unknown or invalid key;
            the message names the key and the nearest valid one.
    """
    return checked(read_recipe(path), kind, path)


def checked(content: Any, kind: type[R], path: Path) -> R:
    """Return what was read from ``path`` as settings.

    Raises:
        BevquantError: a key is unknown or invalid; the message names it.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise BevquantError(f"{path}: {_explain(kind, error)}") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what is written in the recipe at ``path``, unchecked.

    Raises:
        BevquantError: the file is missing, is not YAML, or is no mapping.
    """
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates, endless numbers, depth
        raise BevquantError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise BevquantError(f"{path}: a recipe is a mapping of keys to values")
    return content


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key is also a missing one: the misspelling is the mend.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{key}: {first['msg']}"
    owner = kind
    for part in first["loc"][:-1]:
        field = owner.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        owner = inner
    unknown = str(first["loc"][-1])
    near = difflib.get_close_matches(unknown, owner.model_fields, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]!r}?" if near else f"valid keys: {_names(owner)}"
    return f"unknown key {key!r}; {mend}"


def _names(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)
