"""The stage and the learning rate of a step, as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import Recipe, Stage


@dataclass(frozen=True)
class StagePlan:
    """Stage number `index` of the recipe, from step `first` (inclusive) to `last` (exclusive)."""

    index: int
    stage: Stage
    first: int
    last: int


def plan_stages(recipe: Recipe, max_steps: int) -> list[StagePlan]:
    """Divide [0, max_steps) by the shares of the stages; the last stage ends the run."""
    plans, first, total = [], 0, 0.0
    for index, stage in enumerate(recipe.stages):
        total += stage.share
        last = max_steps if index == len(recipe.stages) - 1 else round(total * max_steps)
        plans.append(StagePlan(index, stage, first, last))
        first = last
    return plans


def learning_rate_factor(step: int, max_steps: int, *, warmup: float, decay: float) -> float:
    """Return a trapezoid: linear rise over the first `warmup` share, constant, linear fall over the last `decay` share.

    The factor of the last step is half a step above 0, so that it still learns.
    """
    position = step + 0.5
    factor = 1.0
    if warmup > 0:
        factor = min(factor, position / (warmup * max_steps))
    if decay > 0:
        factor = min(factor, (max_steps - position) / (decay * max_steps))
    return max(factor, 0.0)
