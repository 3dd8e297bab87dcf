"""The sections of a report: one maker per verb, and the lineage graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from consomme.base.manifest import Manifest, lineage
from consomme.pipelines.dedup.report import dedup_section
from consomme.pipelines.evaluate.report import _evaluate
from consomme.pipelines.filter.report import filter_section
from consomme.pipelines.recaption.report import recaption_section
from consomme.pipelines.score.report import _score
from consomme.pipelines.soup.report import soup_section
from consomme.pipelines.tag.report import tag_section
from consomme.pipelines.train.report import _train
from consomme.report import model as page
from consomme.storage.ledger.run_folder import load_manifest


def _sections(manifests: Mapping[str, Manifest]) -> list[page.Section]:
    makers: Mapping[str, Callable[[list[Manifest]], list[page.Section]]] = {
        "score": lambda found: [section for m in found for section in _score(m, manifests)],
        "tag": lambda found: [tag_section(m) for m in found],
        "filter": lambda found: [filter_section(m) for m in found],
        "dedup": lambda found: [dedup_section(m) for m in found],
        "recaption": lambda found: [recaption_section(m) for m in found],
        "train": lambda found: [_train(found)],
        "soup": lambda found: [soup_section(m) for m in found],
        "evaluate": lambda found: [_evaluate(m) for m in found],
    }
    sections = []
    for verb, maker in makers.items():
        found = [m for m in manifests.values() if m.verb == verb]
        if found:
            sections += maker(found)
    return sections


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    return [(key, f"{value:,}") for key, value in list(manifest.counts.items())[:6]]


def _versions(manifest: Manifest) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return f"Made with {versions}."


def _lineage(manifest: Manifest) -> page.Section:
    runs = {m.url: m for m in [manifest, *lineage(manifest, load_manifest)]}
    return _graph(runs)


def _chain(manifests: Mapping[str, Manifest]) -> page.Section:
    return _graph({m.url: m for m in manifests.values()})


def _graph(runs: Mapping[str, Manifest]) -> page.Section:
    nodes = [page.LineageNode(node_id=url, verb=m.verb, title=m.name) for url, m in runs.items()]
    edges = [
        (parent.url, url) for url, m in runs.items() for parent in m.parents if parent.url in runs
    ]
    return page.Section(
        title="Lineage", blocks=[page.Lineage(nodes=nodes, edges=edges)] if edges else []
    )
