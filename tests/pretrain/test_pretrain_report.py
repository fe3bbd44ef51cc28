"""Protects the pictures of training: the curve's marks and smoothing, and the page that compares runs."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from pretraining import run as pretrain_run

from pretrain.cli import main
from pretrain.curve import draw_curve, smooth
from pretrain.recipe import Stage
from pretrain.schedule import StagePlan

STEPS = 200


def metrics(steps: int = STEPS, level: float = 4.0, seconds: float = 0.5) -> list[dict]:
    """A loss that falls from 9 to `level`, validated at every fortieth step."""
    noise = np.random.default_rng(0).normal(0, 0.1, steps)
    lines = []
    for step in range(1, steps + 1):
        loss = level + (9 - level) * np.exp(-step / 30) + noise[step - 1]
        figures = {"step": step, "tokens": 512 * step, "seconds": seconds * step, "loss": loss, "learning_rate": 2e-3}
        lines.append(figures | ({"validation_loss": loss - 0.2} if step % 40 == 0 else {}))
    return lines


def leave_run(folder: Path, *, finished: bool = True, level: float = 4.0, **settings) -> Path:
    """What `python -m pretrain` writes of itself."""
    training = folder / "training"
    training.mkdir(parents=True)
    lines = metrics(level=level)
    training.joinpath("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training.joinpath("recipe.yaml").write_text(
        yaml.safe_dump({"learning_rate": 0.002, "stages": [{"share": 1.0}]} | settings)
    )
    training.joinpath("run.json").write_text(json.dumps({"corpus": ["sample"], "seed": 1, "max_steps": STEPS}))
    if finished:
        training.joinpath("summary.json").write_text(json.dumps({"parameters": 1234567}))
    return folder


def page_data(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_smoothing_neither_lags_nor_invents():
    """A straight line is unchanged except at its end; noise shrinks; NaN is skipped."""
    line = np.linspace(9, 3, 1000)
    np.testing.assert_allclose(smooth(line)[:980], line[:980], atol=1e-12)
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise)[50:].std() < 0.35 * noise.std()
    broken = line.copy()
    broken[500] = np.nan
    assert np.isfinite(smooth(broken)).all()
    np.testing.assert_allclose(smooth(broken), smooth(line), atol=0.02)
    np.testing.assert_array_equal(smooth(np.array([5.0])), [5.0])


def test_the_curve_shows_losses_and_rates(tmp_path, monkeypatch):
    """Raw, smoothed and validation above, the learning rate below; mask rates explain a higher training loss."""
    drawn, stages = {}, [Stage(0.1, 128, 8, mask_rate=0.3), Stage(0.9, 128, 32, mask_rate=0.2)]
    plans = [StagePlan(0, stages[0], 0, 20), StagePlan(1, stages[1], 20, STEPS)]
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda figure: drawn.update(figure=figure))
        draw_curve(metrics(), tmp_path / "loss.png", plans)
    curves = {line.get_label(): line for line in drawn["figure"].axes[0].lines}
    validation = "validation: 15 % masked"
    smoothed = "training, smoothed: 30 %, then 20 % masked; more masks, higher loss"
    assert {"training, each step", smoothed, validation} <= curves.keys()
    assert len(curves[validation].get_ydata()) == 5
    assert [text.get_text() for text in drawn["figure"].axes[1].texts] == ["32 x 128 tokens"]
    plt.close(drawn["figure"])
    assert imread(tmp_path / "loss.png").shape[1] > 900


def test_runs_are_compared_on_one_page(tmp_path, capsys):
    """Curves as they are in metrics.jsonl; settings that differ apart from those that do not; twice the same page."""
    runs = [leave_run(tmp_path / "a"), leave_run(tmp_path / "b", finished=False, level=3.0, learning_rate=0.01)]
    output = tmp_path / "page.html"
    main(["report", *map(str, runs), "--output", str(output)])
    assert capsys.readouterr().out == f"{output}: 2 runs\n"
    data = page_data(output)
    assert [run["name"] for run in data["runs"]] == [str(run) for run in runs]
    for run, level in zip(data["runs"], (4.0, 3.0), strict=True):
        lines = metrics(level=level)
        for column in ("tokens", "seconds", "loss", "learning_rate"):
            assert run[column] == pytest.approx([line[column] for line in lines], rel=1e-4)
        assert run["validated"] == [39, 79, 119, 159, 199]
    assert data["differing"] == [["learning_rate", "0.002", "0.01"]]
    assert ["stages.0.share", "1.0", "1.0"] in data["alike"] and ["run.seed", "1", "1"] in data["alike"]
    parameters = [dict(run["figures"])["parameters"] for run in data["runs"]]
    assert parameters == ["1,234,567", "not finished"]
    first = output.read_bytes()
    main(["report", *map(str, runs), "--output", str(output)])
    assert output.read_bytes() == first


def test_a_loss_that_was_no_number_leaves_a_gap(tmp_path):
    run, output = leave_run(tmp_path / "a"), tmp_path / "page.html"
    file = run / "training" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[7] = json.dumps(json.loads(lines[7]) | {"loss": float("nan")})
    file.write_text("\n".join(lines))
    main(["report", str(run), "--output", str(output)])
    (shown,) = page_data(output)["runs"]
    assert shown["loss"][7] is None and shown["smoothed"][7] is not None


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    run, broken = leave_run(tmp_path / "run"), leave_run(tmp_path / "broken")
    (broken / "training" / "recipe.yaml").write_text("a: [")
    page = ["--output", str(tmp_path / "page.html")]
    for flags, complaint in {
        (str(tmp_path), *page): "metrics.jsonl: no metrics",
        (str(broken), *page): "cannot be read",
        (str(run), "--output", str(tmp_path / "page.txt")): "name of a .html file",
        (str(run),): "--output",
        tuple(page): "runs",
    }.items():
        assert pretrain_run(["report", *flags]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "run"]
