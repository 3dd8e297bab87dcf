"""Draw the report of a finished run: one page with pictures.

Every number and picture is read from run folders. Nothing is computed that a stage did not decide
or measure, so a report can be drawn again at any time.
"""

from __future__ import annotations

from dataclasses import replace

from consomme.base.manifest import Manifest, lineage
from consomme.base.sealed import sealed
from consomme.pipelines.report.loop import loop_page
from consomme.pipelines.report.sections import facts_of, lineage_of, sections_of, versions_of
from consomme.pipelines.sweep.report import sweep_report
from consomme.report import model as page
from consomme.report.html import render
from consomme.storage.ledger.run_folder import RunFolder, load_manifest


def run_folder(url: str) -> Manifest:
    """Draw the report of one finished run into its folder.

    Args:
        url: The run folder.
    """
    manifest = load_manifest(url)
    folder = RunFolder.at(url)
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
    folder.store.write("report.html", sealed(text))
    # The manifest on disk is never changed; this copy tells the command line where the report is.
    return replace(manifest, outputs={**manifest.outputs, "report": "report.html"})


def _description(manifest: Manifest) -> str:
    """The recipe's description; older runs call the key `story`."""
    return str(manifest.recipe.get("description", manifest.recipe.get("story", "")))
