"""The report section of a soup: every step of each search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.report import model as page
from consomme.report.guards import guard_tables


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Return the section of one soup run."""
    labels = manifest.decisions["labels"]
    if "searches" not in manifest.decisions:
        return _mixed(manifest)
    blocks: list[page.Block] = []
    for name, result in manifest.decisions["searches"].items():
        items = []
        for step in result["trace"]:
            candidate = " + ".join(labels[k] for k in step["members"])
            if step.get("shares"):
                candidate = _in_words(step["shares"])
            if step.get("fails_guards"):
                candidate += " (lost more than the guards allow)"
            items.append(
                page.SearchStep(
                    candidate=candidate,
                    score=step["score"],
                    best_before=step["best_before"],
                    accepted=step["accepted"],
                    note=_note(step),
                )
            )
        blocks.append(page.Steps(items=items, score_label="held-out score", caption=name))
        blocks += _front(name, result)
        blocks += _barriers(result, labels)
    blocks += _weights(manifest.decisions)
    singles = manifest.decisions["singles"]
    best = max(singles.values()) if singles else float("nan")
    scores = ", ".join(
        f"{name} {result['score']:.3f}" for name, result in manifest.decisions["searches"].items()
    )
    text = f"Best single ingredient {best:.3f}; {scores}, on the held-out set used for the choice."
    if saved := manifest.decisions.get("early_stop"):
        text += (
            f"\n\n{saved['stopped_candidates']:,} of {saved['candidates']:,} candidates were worse,"
            " most likely, after some of the questions, and were asked no more: of"
            f" {saved['questions']:,} questions {saved['saved_questions']:,} were not asked."
        )
    for name, result in manifest.decisions["searches"].items():
        blocks += guard_tables(result.get("guards", ()), f"{name}: kept of the base model")
    blocks += _reported(manifest.decisions)
    return page.Section(title=f"Soup: {manifest.name}", lead_text=text, blocks=blocks)


def _in_words(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Say which shares a candidate has; of each part if these differ."""
    texts = {
        part: " + ".join(f"{share:.2f} {label}" for label, share in some.items())
        for part, some in shares.items()
    }
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{part}: {text}" for part, text in texts.items())


def _note(step: Mapping[str, Any]) -> str:
    if "stopped_after" in step:
        return f"asked no more after {step['stopped_after']:,} questions; an estimate"
    if "low" in step:
        return f"95 %: {step['low']:.3f} to {step['high']:.3f}"
    return ""


def _weights(decisions: Mapping[str, Any]) -> list[page.Block]:
    """Tabulate the shares of each search's soup; none of runs that did not keep them."""
    rows = [
        (name, part, *(shares.get(label) for label in decisions["labels"]))
        for name, result in decisions["searches"].items()
        for part, shares in result.get("shares", {}).items()
    ]
    if not rows:
        return []
    columns = ("search", "part", *decisions["labels"])
    return [page.Table(columns=columns, rows=rows, caption="Shares of the ingredients.")]


def _front(name: str, result: Mapping[str, Any]) -> list[page.Block]:
    """Draw what no other candidate excels; nothing with one objective."""
    front = result.get("front", ())
    if not front:
        return []
    objectives = list(front[0]["objectives"])
    columns = ("number", *objectives, "shares", "guards")
    rows = [
        (
            str(k),
            *one["objectives"].values(),
            _in_words(one["shares"]),
            "kept" if one["passes_guards"] else "lost more than they allow",
        )
        for k, one in enumerate(front, 1)
    ]
    chosen = [k for k, one in enumerate(front) if one["is_soup"]]
    caption = f"{name}: candidates that no other one excels; the soup is marked."
    if not chosen:
        caption = (
            f"{name}: candidates that no other one excels; the soup, which keeps more, is none."
        )
    table = page.Table(columns=columns, rows=rows, caption=caption, highlight=chosen)
    first, *others = objectives
    drawn = [
        page.Dots(
            dots=[
                *(
                    page.Dot(label="", x=one[0], y=one[k], is_other=True)
                    for one in result["objectives"]
                ),
                *(
                    page.Dot(label=str(number), x=one["objectives"][first], y=one["objectives"][y])
                    for number, one in enumerate(front, 1)
                ),
            ],
            x_label=first,
            y_label=y,
            caption=f"{name}: numbers are those of the table, small dots other candidates.",
        )
        for k, y in enumerate(others, 1)
    ]
    return [*drawn, table]


def _barriers(result: Mapping[str, Any], labels: Sequence[str]) -> list[page.Block]:
    """Draw what lies between two ingredients each; nothing for other searches."""
    found = result.get("barriers", ())
    if not found:
        return []
    size = range(len(labels))
    value = {(one["first"], one["second"]): one["barrier"] for one in found}
    rows = [[value.get((min(i, k), max(i, k))) for k in size] for i in size]
    highest = max(found, key=lambda one: one["barrier"])
    pair = f"{labels[highest['first']]} and {labels[highest['second']]}"
    caption = (
        "Barrier between two ingredients: how far the score of a mix falls below the straight line"
        f" between theirs, at most; below zero, mixing helps. Highest: {pair},"
        f" {highest['barrier']:.3f}."
    )
    return [page.ShadedMatrix(labels=labels, rows=rows, caption=caption)]


def _mixed(manifest: Manifest) -> page.Section:
    """Return the section of a soup that nothing was measured for."""
    decisions = manifest.decisions
    method = ", ".join(f"{key} {value}" for key, value in decisions["method"].items())
    return page.Section(
        title=f"Soup: {manifest.name}",
        lead_text=f"All ingredients, mixed by {method}. Nothing was measured.",
        blocks=[
            page.Table(
                columns=("ingredient", "share"),
                rows=[(label, f"{share:.4f}") for label, share in decisions["shares"].items()],
            )
        ],
    )


def _reported(decisions: Mapping[str, Any]) -> list[page.Block]:
    """Tabulate the main figures of the benchmarks that chose nothing; none without any."""
    table, main = decisions.get("report", {}), decisions.get("main_figures", {})
    if not table:
        return []
    return [
        page.Table(
            columns=("model", *(f"{name}: {figure}" for name, figure in main.items())),
            rows=[
                (label, *(row[name][figure] for name, figure in main.items()))
                for label, row in table.items()
            ],
            caption="Benchmarks that did not choose.",
        )
    ]
