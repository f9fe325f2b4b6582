"""What is examined: a device, a recipe, and the recipe's base, loaded or made up."""

from __future__ import annotations

import os
import tempfile
import time
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from kit.config import DEMO_RECIPE, EMBEDDED, Config
from kit.doctor.private import model_name
from kit.doctor.stand_in import write_stand_in
from kit.errors import ModelError
from kit.estimate.fit import shape_of
from kit.estimate.forecast import Forecast, estimate
from kit.estimate.gpus import known_as
from kit.estimate.memory import GIB
from kit.model.base import Base, load_base
from kit.model.shape import Shape, find_shape
from kit.recipe import load_config

MINUTES = {True: 2, False: 10}  # of the quick form, of the full one
PATIENCE = 5  # seconds to wait for the hub
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"  # where no recipe names one
SMALL = {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 48}


class Patient:
    """A device and a recipe whose step is taken on it.

    In the quick form, and on a CPU, the embedded model takes the place of the recipe's and the step
    is small; `shape` is still that of the recipe's own model.
    """

    def __init__(self, device: torch.device, recipe: Config | None, *, quick: bool) -> None:
        self.device = device
        self.recipe = recipe or load_config(
            DEMO_RECIPE, [f"model.id={MODEL}", "rollout.max_new_tokens=256"]
        )
        self.is_small = quick or device.type == "cpu"
        self.config = _small(self.recipe) if self.is_small else self.recipe
        self.ends = time.monotonic() + 60 * MINUTES[quick]

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    @cached_property
    def shape(self) -> Shape:
        """Of the recipe's model; of the usual one where the arithmetic does not know that."""
        try:
            return shape_of(self.recipe)
        except ModelError:
            return find_shape(MODEL)[0]

    @property
    def gpu(self) -> str:
        """The card as `kit estimate` takes it: by name, or by its memory in GiB."""
        properties = torch.cuda.get_device_properties(self.device)
        return known_as(properties.name, properties.total_memory / GIB)

    @cached_property
    def base(self) -> Base:
        """The base of the recipe, with random weights where its own are out of reach."""
        model = self.config.model
        if self.is_reachable:
            return load_base(model, self.device)
        with tempfile.TemporaryDirectory() as folder:
            write_stand_in(model, Path(folder), self.device)
            copied = model.model_copy(update={"path": folder, "revision": None})
            return load_base(copied, self.device)

    @cached_property
    def is_reachable(self) -> bool:
        """Whether the base is here, or the hub answers in good time."""
        model = self.config.model
        if model.id == EMBEDDED or os.path.isdir(model.source):
            return True
        try:
            hf_hub_download(model.id, "config.json", revision=model.revision, etag_timeout=PATIENCE)
        except (OSError, HFValidationError):
            return False
        return True

    @property
    def base_in_words(self) -> str:
        """Which weights its base has."""
        if self.config.model.id == EMBEDDED:
            return "the embedded model"
        weights = "its own" if self.is_reachable else "random"
        return f"{model_name(self.config.model.id)} with {weights} weights"

    def forecast(self, config: Config) -> Forecast | None:
        """`kit estimate` of a recipe on this card; None where it does not know the model."""
        try:
            return estimate(config, self.gpu)
        except ModelError:
            return None


def _small(recipe: Config) -> Config:
    # nothing is sampled with sft, whose solutions have to fit
    rollout = {} if recipe.method == "sft" else SMALL
    preferences = recipe.preferences
    if recipe.learns_from_preferences:
        batch = min(preferences.batch, SMALL["group_size"])
        preferences = preferences.model_copy(update={"batch": batch})
    model = {"id": EMBEDDED, "path": None, "revision": None}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "rollout": recipe.rollout.model_copy(update=rollout),
            "preferences": preferences,
        }
    )
