"""A run: every constant that peers must agree on, and nothing else (protocol §2).

`run.toml` is read into `Run`. Its digest is in every signed document, so two peers with different constants
can never count each other's work by accident. The version of the code is not part of it.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from protocol.errors import RunError
from protocol.identity import Digest, Document, digest_of

PRESETS = ("demo", "150m", "1b", "8b", "covenant-72b")

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Scalar = bool | int | float | str
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Time(Document):
    """Lengths in chain blocks (§3). g, r, m and f of the protocol, in that order."""

    first_window: Annotated[int, Field(ge=0)] = 0
    window_blocks: Annotated[int, Field(ge=3)]
    seal_blocks: Count = 1
    reveal_blocks: Count = 4
    manifest_blocks: Count = 6
    failover_blocks: Count = 3

    @model_validator(mode="after")
    def _in_order(self) -> Time:
        if not self.seal_blocks + 1 < self.reveal_blocks <= self.manifest_blocks:
            raise ValueError("must hold: seal_blocks + 1 < reveal_blocks <= manifest_blocks")
        # Else nobody could train in the window after one whose leader was silent.
        if self.manifest_blocks + self.failover_blocks >= self.window_blocks:
            raise ValueError("must hold: manifest_blocks + failover_blocks < window_blocks")
        return self


class Dataset(Document):
    """Which dataset, by the digest of its dataset.json, and how its pages are dealt out (§7)."""

    index_digest: Digest
    sequence_tokens: Annotated[int, Field(ge=2)]
    page_sequences: Count
    slots: Annotated[int, Field(ge=1, le=65536)]


class Inner(Document):
    """The inner optimizer (§8). A step reads `pages_per_step` pages; a window has `steps` of them."""

    optimizer: Literal["adamw"] = "adamw"
    steps: Count
    pages_per_step: Count
    learning_rate: Annotated[float, Field(gt=0.0)]
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: Annotated[int, Field(ge=0)] = 0
    final_learning_rate_share: Share = 1.0


class SparseLoCo(Document):
    """Compression and the outer step (§8, §9, §13).

    `value_bits` is 1 or 2, or 32 for values that are not quantised. `outer_learning_rate` is a list of
    (from window, value), constant in between.
    """

    k: Annotated[int, Field(ge=1, le=4096)] = 64
    value_bits: Literal[1, 2, 32] = 2
    error_feedback: Share = 0.95
    average: Literal["all", "contributors"] = "all"
    outer_learning_rate: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0.0)]], ...] = ((0, 1.0),)

    @model_validator(mode="after")
    def _schedule_ascends(self) -> SparseLoCo:
        windows = [window for window, _ in self.outer_learning_rate]
        if not windows or windows[0] != 0 or any(b <= a for a, b in itertools.pairwise(windows)):
            raise ValueError("outer_learning_rate must start at window 0 and ascend")
        return self

    def alpha(self, window: int) -> float:
        """α of `window`, the outer learning rate."""
        return next(value for start, value in reversed(self.outer_learning_rate) if start <= window)


class Gauntlet(Document):
    """How contributions are judged (§14). There are `random_pages` shared pages, and as many more at a time, at most
    `random_pages_most` in all, while the order of the peers is not settled; without that field there are no more."""

    step_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    sample: Count = 20
    random_pages: Annotated[int, Field(ge=2)]
    random_pages_most: Annotated[int, Field(ge=2)]
    own_pages: Annotated[int, Field(ge=2)]
    held_out_pages: Count
    overlap_limit: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    rating_beta: Annotated[float, Field(gt=0.0)] = 7.0
    rating_tau: Annotated[float, Field(ge=0.0)] = 0.1
    draw_errors: Annotated[float, Field(ge=0.0)] = 1.0
    unique_work_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    unique_work_errors: Annotated[float, Field(ge=0.0)] = 2.5
    norm_limit: Annotated[float, Field(gt=1.0)] = 10.0
    sync_steps: Count = 3
    gather_size: Count = 20
    reserve_size: Annotated[int, Field(ge=0)] = 10

    @model_validator(mode="before")
    @classmethod
    def _no_growth_unless_said(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "random_pages" in fields:
            return {"random_pages_most": fields["random_pages"]} | dict(fields)
        return fields

    @model_validator(mode="after")
    def _most_is_not_least(self) -> Gauntlet:
        if self.random_pages_most < self.random_pages:
            raise ValueError("random_pages_most must be at least random_pages, or be left out for no more than those")
        return self


class Penalties(Document):
    """What a bad window does to a peer's standing (§14): standing is multiplied by the share, and every clean
    window gives `recovery` back, up to 1. After `inactive_windows` in a row without a seal a peer is inactive."""

    missing: Share = 0.75
    rejected: Share = 0.5
    negative: Share = 0.75
    recovery: Share = 0.1
    inactive_windows: Count = 4
    negative_span: Count = 8
    amnesty_rank: Count = 5


class Weights(Document):
    """How final scores become weights on chain (§14)."""

    rule: Literal["tiers", "power"] = "tiers"
    gather_share: Share = 0.75
    best_to_worst: Annotated[float, Field(ge=1.0)] = 2.0
    burn_share: Share = 0.0
    burn_uid: Annotated[int, Field(ge=0)] = 0
    every_windows: Count = 1


class Checkpoints(Document):
    """When the state is published whole, and how long objects stay (§6, §15)."""

    every_windows: Count = 10
    keep: Annotated[int, Field(ge=2)] = 3


class Run(Document):
    """Everything in run.toml. `model` is the configuration of a Hugging Face causal language model;
    `genesis_root` is the state root before the first window."""

    version: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    genesis_root: Digest
    time: Time
    model: dict[str, Scalar | dict[str, Scalar]]
    dataset: Dataset
    inner: Inner
    sparseloco: SparseLoCo = SparseLoCo()
    gauntlet: Gauntlet
    penalties: Penalties = Penalties()
    weights: Weights = Weights()
    checkpoints: Checkpoints = Checkpoints()

    @model_validator(mode="after")
    def _parts_agree(self) -> Run:
        if self.gauntlet.own_pages > self.pages_per_window:
            raise ValueError(
                "gauntlet.own_pages exceeds the pages a miner reads in a window (inner.steps x pages_per_step)"
            )
        # Two peers share k of 4096 positions by chance alone; a limit no higher would call honest work a copy.
        if self.sparseloco.k / 4096 >= self.gauntlet.overlap_limit < 1.0:
            raise ValueError("gauntlet.overlap_limit must be above sparseloco.k / 4096, or 1.0 to compare nothing")
        if "model_type" not in self.model:
            raise ValueError("model.model_type is missing: name a Hugging Face causal language model, e.g. 'llama'")
        return self

    @property
    def pages_per_window(self) -> int:
        """Pages one miner is assigned in one window: n of §7."""
        return self.inner.steps * self.inner.pages_per_step

    @property
    def pages_needed(self) -> int:
        """Fewest assignable pages with which every slot and the random draw can be served."""
        return self.dataset.slots * self.pages_per_window + self.gauntlet.random_pages_most

    def digest(self) -> str:
        """The run digest: BLAKE3 of the canonical form."""
        return self._digest

    @cached_property
    def digest_bytes(self) -> bytes:
        """The run digest as 32 bytes."""
        return bytes.fromhex(self._digest)

    @cached_property
    def _digest(self) -> str:
        # Every document of every peer is compared with it, and the canonical form takes longer than all else there.
        return digest_of(self.canonical())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See pydantic; the digest of the copy is its own."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("_digest", "digest_bytes"):
            copied.__dict__.pop(name, None)
        return copied


def parse_run(text: str) -> Run:
    """Read run.toml; raises `RunError` with the key and what is allowed there."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the parser has bounds of its own: digits, nesting
        raise RunError(f"run.toml is not TOML: {error}") from error
    return run_from_table(table)


def run_from_table(table: Mapping[str, Any]) -> Run:
    """Check a table of constants; raises `RunError` as `parse_run` does."""
    try:
        # By way of JSON, because strict mode takes a list for a tuple only there.
        return Run.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            key = ".".join(str(part) for part in problem["loc"]) or "run"
            known = "unknown key, remove it" if problem["type"] == "extra_forbidden" else problem["msg"]
            problems.append(f"{key}: {known}")
        raise RunError("run.toml: " + "; ".join(problems)) from error


def preset_table(name: str) -> dict[str, Any]:
    """The constants of a preset, all but `genesis_root` and `dataset.index_digest`, which a new run must fill in."""
    if name not in PRESETS:
        raise RunError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return tomllib.loads((files("protocol") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
