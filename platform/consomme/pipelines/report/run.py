"""Draw the report of a finished run: one page with pictures.

Every number and picture is read from run folders. Nothing is computed that a stage did not decide
or measure, so a report can be drawn again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from consomme.base.manifest import Manifest, lineage
from consomme.base.sealed import sealed
from consomme.pipelines.report.loop import loop_page
from consomme.pipelines.report.sections import facts_of, lineage_of, sections_of, versions_of
from consomme.pipelines.sweep.report import sweep_report
from consomme.report import model as page
from consomme.report.html import render
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.stores.store import join_url

REPORT = "report.html"


def run_folder(url: str) -> Manifest | str:
    """Draw the report of one run into its folder.

    Args:
        url: The run folder.

    Returns:
        The manifest, or a sentence about a run that ended without finishing.
    """
    folder = RunFolder.at(url)
    if not folder.is_done and (failure := folder.failure()):
        folder.store.write(REPORT, render(_failed_page(folder, failure)).encode())
        where = join_url(folder.url, REPORT)
        return f"{folder.url}: failed; the reason and what is finished so far: {where}"
    manifest = load_manifest(url)
    if manifest.verb == "loop":
        manifests = {m.name: m for m in lineage(manifest, load_manifest) if m.verb != "loop"}
        table = manifest.decisions.get("summary", [])
        description = _description(manifest)
        rounds = manifest.decisions.get("rounds", {})
        text = render(loop_page(manifest.name, description, manifests, table, rounds))
    elif manifest.verb == "sweep":
        description = _description(manifest)
        text = sweep_report(manifest.name, description, manifest.fingerprint, manifest.decisions)
    else:
        text = render(
            page.Report(
                title=f"{manifest.verb} {manifest.name}",
                subtitle=f"run `{manifest.fingerprint}`, {manifest.seconds:.0f} s",
                facts=facts_of(manifest),
                sections=[*sections_of({manifest.name: manifest}), lineage_of(manifest)],
                footer=versions_of(manifest),
            )
        )
    folder.store.write(REPORT, sealed(text))
    # The manifest on disk is never changed; this copy tells the command line where the report is.
    return replace(manifest, outputs={**manifest.outputs, "report": REPORT})


def _failed_page(folder: RunFolder, failure: Mapping[str, Any]) -> page.Report:
    """Lay out why a run ended, what to do, and what is finished."""
    names = ("code", "class", "attempt", "unit", "time", "host", "pid")
    rows: list[list[page.Cell]] = [
        [name, str(failure[name])] for name in names if failure.get(name) not in ("", None)
    ]
    counts: list[list[page.Cell]] = [
        [name, number] for name, number in folder.total_counts().items()
    ]
    blocks: list[page.Block] = [
        page.Paragraph(text=str(failure["message"])),
        page.Paragraph(text=f"What to do: {failure['advice']}."),
        page.Table(columns=["", "the attempt"], rows=rows),
    ]
    if failure.get("traceback"):
        blocks.append(page.Paragraph(text=str(failure["traceback"])))
    sections = [page.Section(title="Why it ended", blocks=blocks)]
    if counts:
        table = page.Table(columns=["", "samples"], rows=counts)
        sections.append(page.Section(title="What is finished", blocks=[table]))
    verb, name = folder.url.rstrip("/").split("/")[-2:]
    return page.Report(title=f"{verb} {name}", subtitle="not finished", facts=[], sections=sections)


def _description(manifest: Manifest) -> str:
    """The recipe's description; older runs call the key `story`."""
    return str(manifest.recipe.get("description", manifest.recipe.get("story", "")))
