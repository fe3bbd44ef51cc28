"""What a step is: which stage it belongs to, and its share of the learning rate. Pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import Recipe, Stage


@dataclass(frozen=True)
class StagePlan:
    """Stage number `index`, from step `first` (inclusive) to `last` (exclusive)."""

    index: int
    stage: Stage
    first: int
    last: int


def plan_stages(recipe: Recipe, max_steps: int) -> list[StagePlan]:
    """Cuts [0, max_steps) by the stages' shares; the last stage takes what rounding leaves."""
    plans, first, total = [], 0, 0.0
    for index, stage in enumerate(recipe.stages):
        total += stage.share
        last = max_steps if index == len(recipe.stages) - 1 else round(total * max_steps)
        plans.append(StagePlan(index, stage, first, last))
        first = last
    return plans


def learning_rate_factor(step: int, max_steps: int, *, warmup: float, decay: float) -> float:
    """Trapezoid: linear rise over the first `warmup` share, constant, linear fall to 0 over the last `decay` share.

    Step `max_steps - 1` still learns: its factor is half a step above 0.
    """
    position = step + 0.5
    factor = 1.0
    if warmup > 0:
        factor = min(factor, position / (warmup * max_steps))
    if decay > 0:
        factor = min(factor, (max_steps - position) / (decay * max_steps))
    return max(factor, 0.0)
