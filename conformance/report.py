"""Holds each family of ours against its stock counterparts, test by test, and writes it down as Markdown."""

from __future__ import annotations

from .families import JUSTIFIED, OURS
from .runner import FamilyResult


def render(results: dict[str, FamilyResult]) -> tuple[str, bool]:
    """`results` by family -> the report, and whether all is well: no test of ours fails, and none that a counterpart
    passes is skipped without a reason in `JUSTIFIED`."""
    sections, well = [_table(results)], True
    for family, spec in OURS.items():
        if family not in results:
            continue
        counterparts = [results[name] for name in spec.counterparts if name in results]
        failing = results[family].names("failed")
        skipped = _skipped_differently(results[family], counterparts)
        well = well and not failing and skipped.keys() <= JUSTIFIED.keys()
        sections.append(_section(results[family], failing, skipped, counterparts))
    stock = [result for family, result in results.items() if family not in OURS and result.names("failed")]
    sections += [_list(f"{result.family}, failing", _reasons(result, result.names("failed"))) for result in stock]
    return "\n\n".join(sections) + "\n", well


def _table(results: dict[str, FamilyResult]) -> str:
    """One row for each pair, ours on the left."""
    lines = [
        "| ours | passed | failed | skipped | s | stock | passed | failed | skipped | s |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for family, spec in OURS.items():
        counterparts = [name for name in spec.counterparts if name in results]
        if family in results:
            lines += [_row(results[family], results.get(name)) for name in counterparts or [None]]
        else:
            lines += [_row(None, results[name]) for name in counterparts]
    return "\n".join(lines)


def _row(ours: FamilyResult | None, stock: FamilyResult | None) -> str:
    cells = []
    for result in (ours, stock):
        if result is None:
            cells += [""] * 5
        else:
            counts = [str(len(result.names(outcome))) for outcome in ("passed", "failed", "skipped")]
            cells += [result.family, *counts, f"{result.seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def _skipped_differently(ours: FamilyResult, counterparts: list[FamilyResult]) -> dict[str, str]:
    """Tests that a counterpart passes and ours skips or does not have -> why, and whose they are."""
    different = {}
    for stock in counterparts:
        for name in stock.names("passed"):
            test = ours.tests.get(name, {"outcome": "skipped", "reason": "no such test of ours"})
            if test["outcome"] == "skipped":
                different[name] = f"{test['reason']} ({stock.family} passes)"
    return different


def _section(ours: FamilyResult, failing: list[str], skipped: dict[str, str], counterparts: list[FamilyResult]) -> str:
    against = " and ".join(result.family for result in counterparts) or "nothing: no counterpart was run"
    for name in skipped.keys() & JUSTIFIED.keys():
        skipped[name] += f"; justified: {JUSTIFIED[name]}"
    parts = [
        f"## {ours.family}, held against {against}",
        _list("failing", _reasons(ours, failing)),
        _list("skipped where a counterpart passes", skipped),
    ]
    if failing:
        parts.append(f"pytest's output: {ours.log}")
    return "\n\n".join(parts)


def _reasons(result: FamilyResult, names: list[str]) -> dict[str, str]:
    return {name: result.tests[name]["reason"] for name in names}


def _list(title: str, reasons: dict[str, str]) -> str:
    if not reasons:
        return f"{title}: none"
    return "\n".join([f"{title}:", "", *(f"- `{name}`: {reason}" for name, reason in sorted(reasons.items()))])
