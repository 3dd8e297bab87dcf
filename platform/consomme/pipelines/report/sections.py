"""The parts of a report that all verbs share: their sections in order, versions, lineage."""

from __future__ import annotations

from collections.abc import Mapping

from consomme.base.manifest import Manifest, lineage
from consomme.pipelines.verbs import VERBS, resolve
from consomme.report import model as page
from consomme.storage.ledger.run_folder import load_manifest

MAX_FACTS = 6
"""Counts shown at the top of a page."""


def sections_of(manifests: Mapping[str, Manifest]) -> list[page.Section]:
    """Let each verb draw its runs, in the order of the table of verbs."""
    drawn: list[page.Section] = []
    for name, verb in VERBS.items():
        runs = [manifest for manifest in manifests.values() if manifest.verb == name]
        if runs and verb.report:
            drawn += resolve(verb.report)(runs, manifests)
    return drawn


def facts_of(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the first counts of a run, as text."""
    return [(key, f"{value:,}") for key, value in list(manifest.counts.items())[:MAX_FACTS]]


def versions_of(manifest: Manifest) -> str:
    """Name the libraries that a run was made with."""
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return f"Made with {versions}."


def lineage_of(manifest: Manifest) -> page.Section:
    """Draw a run and everything it was made from."""
    runs = {m.url: m for m in [manifest, *lineage(manifest, load_manifest)]}
    return _graph(runs)


def lineage_among(manifests: Mapping[str, Manifest]) -> page.Section:
    """Draw which of some runs was made from which."""
    return _graph({m.url: m for m in manifests.values()})


def _graph(runs: Mapping[str, Manifest]) -> page.Section:
    nodes = [page.LineageNode(node_id=url, verb=m.verb, title=m.name) for url, m in runs.items()]
    edges = [
        (parent.url, url) for url, m in runs.items() for parent in m.parents if parent.url in runs
    ]
    return page.Section(
        title="Lineage", blocks=[page.Lineage(nodes=nodes, edges=edges)] if edges else []
    )
