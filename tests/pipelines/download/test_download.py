"""The verb `download`: URL lists become shards that others read; each bad URL is one reject."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.hub_datasets import opened, pictures_of

from consomme.datasets.scenes import encode, make_scene, render
from consomme.ops.verify import verify
from consomme.pipelines.download import run as download
from consomme.pipelines.download.recipe import DownloadRecipe
from consomme.storage.fetch import FetchPolicy
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.units import plan_units, read_unit

pytestmark = pytest.mark.ray


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(encode(render(make_scene(number))))
    (folder / "page.jpg").write_bytes(b"<html>this is not a picture</html>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_list_becomes_shards(tmp_path: Path, site: str, lent_ray: None) -> None:
    urls = [f"{site}/{number}.png" for number in range(12)]
    urls += [f"{site}/page.jpg", f"{site}/missing.png", "http://127.0.0.1/x.png", None, urls[0]]
    captions = [f"scene {number}" for number in range(12)] + ["a page", "gone", "in", "?", " "]
    (tmp_path / "lists").mkdir()
    table = pa.table({"url": urls, "caption": captions, "width": list(range(17))})
    pq.write_table(table, tmp_path / "lists" / "part.parquet", row_group_size=5)
    recipe = DownloadRecipe(
        name="urls",
        root=str(tmp_path / "runs"),
        inputs=(str(tmp_path / "lists"),),
        unit_rows=7,
        fetch=FetchPolicy(private_hosts=("localhost",), timeout_s=10),
    )
    done = download.run(recipe)
    assert verify(done.url).problems == ()
    samples = [
        sample
        for unit in plan_units([f"{done.url}/shards"], "data")
        for _, sample in read_unit(unit)[0]
    ]
    assert [sample.caption for sample in samples] == captions[:12]
    data = opened(done.url, tmp_path / "cache")
    assert [(row["txt"], len(pictures_of(row))) for row in data] == [(c, 1) for c in captions[:12]]
    for number, sample in enumerate(samples):
        assert sample.images[0].data == encode(render(make_scene(number)))
        assert sample.meta["url"] == urls[number]
        assert sample.meta["width"] == number
    reasons = {r.sample_id[-2:]: r.reason for r in RunFolder.at(done.url).rejects()}
    assert reasons == {
        "12": "url_not_image",
        "13": "url_status",
        "14": "url_refused",
        "15": "image_missing",
        "16": "caption_empty",
    }
    assert download.run(recipe).url == done.url


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.txt", "list.csv.gz"])
def test_lists_of_all_kinds(tmp_path: Path, site: str, name: str, lent_ray: None) -> None:
    """One record has a caption in Latin-1, which costs one reject; NaN is null."""
    by = "\t" if ".tsv" in name else ","
    rows = [(f"{site}/{number}.png", f"scene {number}") for number in range(4)]
    if name.endswith(".jsonl"):
        lines = [b'{"image_url": "%s", "TEXT": "%s", "s": NaN}' % (u.encode(), t.encode())
                 for u, t in rows]  # fmt: skip
    elif name.endswith(".txt"):
        lines = [url.encode() for url, _ in rows]
    else:
        lines = [by.join(("link", "TEXT")).encode(), *(by.join(row).encode() for row in rows)]
    if not name.endswith(".txt"):
        lines.append(lines[-1].replace(b"scene", b"sc\xe8ne"))
    data = b"\n".join(lines) + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    recipe = DownloadRecipe(
        name="urls",
        root=str(tmp_path / "runs"),
        inputs=(str(tmp_path / name),),
        fetch=FetchPolicy(private_hosts=("localhost",), timeout_s=10),
    )
    done = download.run(recipe)
    assert verify(done.url).problems == ()
    samples = []
    for unit in plan_units([f"{done.url}/shards"], "data"):
        found, rejects = read_unit(unit)
        assert not rejects
        samples += [sample for _, sample in found]
    texts = [url if name.endswith(".txt") else text for url, text in rows]
    assert [(sample.meta["url"], sample.caption) for sample in samples] == [
        (url, text) for (url, _), text in zip(rows, texts, strict=True)
    ]
    if name.endswith(".jsonl"):
        assert all(sample.meta.get("s") is None for sample in samples)
    assert done.counts.get("rejected", 0) == (0 if name.endswith(".txt") else 1)
