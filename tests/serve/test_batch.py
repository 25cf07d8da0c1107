from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earn.bundle_edit import set_tags
from earn.cli.main import main
from earn.errors import EarnError
from earn.exchange import only_writer
from earn.export.one_graph import compose_bundle
from earn.runtime.recommender import Recommender
from earn.serve import batch, batch_worker
from earn.serve.batch import _reason, run_batch
from earn.serve.batch_input import Columns, blocks_of
from earn.serve.batch_worker import BlockReport, BlockWorker, Job, batches
from earn.tags import Tags
from tests.serve.conftest import read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Table = Callable[..., Path]


def job(bundle: Path, tmp_path: Path, **settings: Any) -> Job:
    return Job(str(bundle), tmp_path / "recs", **{"k": 3, "block_users": 4, **settings})


def test_answers_are_those_of_single_requests_in_the_order_of_the_rows(
    toy_bundle: Path, tmp_path: Path, histories: Path
) -> None:
    report = run_batch(job(toy_bundle, tmp_path), [histories])
    assert (report.users, report.answered, report.rejected, report.blocks) == (23, 23, 0, 8)  # of 4, 4, 1 rows, ...
    recommender = Recommender.load(toy_bundle, threads=1)
    found = read(tmp_path / "recs")
    assert [row["user"] for row in found] == list(range(23))
    for row, want in zip(found, pq.read_table(histories).to_pylist(), strict=True):
        items = recommender.recommend(want["items"], 3, exclude=want["exclude"] or ())
        assert row["items"] == [item.item_id for item in items]
        assert row["scores"] == pytest.approx([item.score for item in items], abs=1e-4)
    identity = batch_worker.bundle_identity(str(toy_bundle))
    assert {(row["bundle"], row["catalog"]) for row in found} == {(identity["bundle"], identity["catalog"])}


def test_bad_rows_are_set_aside_with_their_reason(toy_bundle: Path, tmp_path: Path) -> None:
    rows: list[tuple[Any, Any, Any]] = [
        ("a", [1, 2], None),
        ("b", [], None),
        ("c", None, None),
        (None, [1], None),
        ("d", [1, 99], None),
        ("e", [1, None], None),
        ("f", [1], [99]),
    ]
    users, items, exclude = zip(*rows, strict=True)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"who": users, "items": items, "exclude": pa.array(exclude, pa.list_(pa.int64()))}), path)
    report = run_batch(job(toy_bundle, tmp_path, columns=Columns(user="who"), block_users=3), [path])
    assert (report.answered, report.rejected) == (1, 6)
    assert [row["user"] for row in read(tmp_path / "recs")] == ["a"]
    rejected = read(tmp_path / "recs", "rejected")
    assert [(row["user"], row["row"]) for row in rejected] == [(users[row], row) for row in range(1, 7)]
    said = ["empty", "empty", "no user", "'99'", "null", "'99'"]
    assert all(text in row["reason"] for text, row in zip(said, rejected, strict=True))


def test_the_one_graph_answers_batches_too(bundle: Path, tmp_path: Path, histories: Path) -> None:
    compose_bundle(bundle)
    lists = []
    for engine in ("cpu", "one-graph"):
        run_batch(job(bundle, tmp_path / engine, engine=engine), [histories])
        lists.append([row["items"] for row in read(tmp_path / engine / "recs")])
    assert lists[0] == lists[1]


def test_filters_of_the_run_and_of_a_row_hold_together(bundle: Path, tmp_path: Path) -> None:
    catalog = Recommender.load(bundle).catalog
    having = {name: catalog.index.find(items) for name, items in (("even", "0246"), ("low", "012"))}
    set_tags(bundle, Tags.of(having, len(catalog)))
    rows = {"user": range(4), "items": [[1], [1], [1], [1]], "allow": ["even", None, "evn", None]}
    rows["block"] = [None, '{"or": [{"tag": "low"}, {"items": ["7"]}]}', None, '{"xor": 1}']
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(rows), path)
    report = run_batch(job(bundle, tmp_path, k=5, block=('{"items": [6]}',)), [path])
    assert (report.answered, report.rejected) == (2, 2)
    first, second = (set(row["items"]) for row in read(tmp_path / "recs"))
    assert first == {"0", "2", "4"}
    assert not second & {"0", "1", "2", "6", "7"}
    said = [row["reason"] for row in read(tmp_path / "recs", "rejected")]
    assert "no tag 'evn'" in said[0]
    assert "is no filter" in said[1]
    with pytest.raises(EarnError, match="no tag 'odd'"):
        run_batch(job(bundle, tmp_path / "other", allow=("odd",)), [path])


def test_unknown_items_may_be_left_out(toy_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"user": [1, 2], "items": [[1, 99], [99]]}), path)
    report = run_batch(job(toy_bundle, tmp_path, unknown="skip"), [path])
    assert (report.answered, report.rejected) == (1, 1)
    assert "no item of the catalog" in read(tmp_path / "recs", "rejected")[0]["reason"]


@pytest.mark.parametrize(
    "users",
    [
        pa.array([b"\x00\xff", b"x"]),
        pa.array([2**63, 1], pa.uint64()),
        pa.array([{"shop": 1, "id": "a"}, {"shop": 2, "id": "a"}]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
    ids=lambda users: str(users.type),
)
def test_user_ids_of_any_type_are_kept(users: Any, toy_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"user": users, "items": [["1"], ["2"]]}), path)
    run_batch(job(toy_bundle, tmp_path), [path])
    column = pq.read_table(tmp_path / "recs/recommendations")["user"]
    assert column.to_pylist() == users.to_pylist()
    assert column.type == users.type


def test_a_stopped_run_goes_on_with_the_blocks_that_are_left(
    toy_bundle: Path, tmp_path: Path, histories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    answer = BlockWorker.__call__

    def watched(worker: BlockWorker, block: Any) -> BlockReport:
        if len(answered) == 3:
            answered.append(-1)
            raise KeyboardInterrupt
        answered.append(block.index)
        return answer(worker, block)

    monkeypatch.setattr(BlockWorker, "__call__", watched)
    with pytest.raises(KeyboardInterrupt):
        run_batch(job(toy_bundle, tmp_path), [histories])
    left = tmp_path / "recs/recommendations/block-000005.parquet.host-1.part"
    left.write_bytes(b"cut short")  # as of a worker that was killed while it wrote
    seen: list[tuple[int, int]] = []
    report = run_batch(job(toy_bundle, tmp_path), [histories], progress=lambda *done: seen.append(done))
    assert (report.blocks, report.blocks_before, report.answered) == (8, 3, 23)
    assert answered == [0, 1, 2, -1, 3, 4, 5, 6, 7]
    assert seen[0] == (13, 23)  # 4 + 4 + 1 rows of before, 4 now
    assert seen[-1] == (23, 23)
    assert [row["user"] for row in read(tmp_path / "recs")] == list(range(23))
    assert not left.exists()
    again = run_batch(job(toy_bundle, tmp_path), [histories])
    assert (again.blocks_before, again.users_per_second) == (8, 0)


def test_another_run_is_refused(bundle: Path, tmp_path: Path, histories: Path) -> None:
    run_batch(job(bundle, tmp_path), [histories])
    with pytest.raises(EarnError, match="another settings"):
        run_batch(job(bundle, tmp_path, k=4), [histories])
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest))  # the same values, but another file
    with pytest.raises(EarnError, match="another bundle"):
        run_batch(job(bundle, tmp_path), [histories])


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, load = batch_worker.bundle_identity(str(bundle)), Recommender.load

    def replaced(*arguments: Any, **options: Any) -> Recommender:
        set_tags(bundle, Tags.of({"new": [0]}, 8))
        return load(*arguments, **options)

    monkeypatch.setattr(Recommender, "load", replaced)
    with pytest.raises(EarnError, match="is not the bundle that the run began with"):
        BlockWorker(job(bundle, tmp_path), identity)


def test_changed_histories_are_refused(toy_bundle: Path, tmp_path: Path, histories: Path) -> None:
    run_batch(job(toy_bundle, tmp_path), [histories])
    blocks = list(blocks_of([histories], 4, Columns()))
    worker = BlockWorker(job(toy_bundle, tmp_path), batch_worker.bundle_identity(str(toy_bundle)))
    pq.write_table(pq.read_table(histories).slice(1), histories)
    with pytest.raises(EarnError, match="another files"):
        run_batch(job(toy_bundle, tmp_path), [histories])
    with pytest.raises(EarnError, match="has changed"):
        worker(blocks[0])


def test_what_cannot_be_run_is_refused_before_the_work(toy_bundle: Path, tmp_path: Path, histories: Path) -> None:
    def refused(message: str, *places: Path, out: Path = tmp_path / "recs", **settings: Any) -> None:
        with pytest.raises(EarnError, match=message):
            run_batch(Job(str(toy_bundle), out, **settings), places)

    refused("no parquet file", tmp_path / "missing.parquet")
    refused("within the histories", tmp_path, out=tmp_path / "recs")
    (tmp_path / "text.parquet").write_text("user,items\n")
    refused("cannot be read as parquet", tmp_path / "text.parquet")
    refused("needs one column 'uid'", histories, columns=Columns(user="uid"))
    pq.write_table(pa.table({"user": [1], "items": [[1.0, 2.0]]}), tmp_path / "floats.parquet")
    refused("lists of texts or of whole numbers", tmp_path / "floats.parquet")
    refused("k is 99", histories, k=99)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    refused("holds files but no run.json", histories, out=tmp_path / "full")
    (tmp_path / "busy").mkdir()
    with only_writer(tmp_path / "busy"):
        refused("another run is writing", histories, out=tmp_path / "busy")


def test_batches_are_filled_by_padded_tokens_shortest_first() -> None:
    lengths = {0: 5, 1: 2, 2: 9, 3: 2, 4: 4}
    assert list(batches(lengths, 12, 8)) == [[1, 3, 4], [0], [2]]  # 3 x 4; 2 x 9 and 2 x 5 with what follows are more
    assert list(batches(lengths, 1, 8)) == [[1], [3], [4], [0], [2]]
    assert list(batches(lengths, 99, 2)) == [[1, 3], [4, 0], [2]]


def test_an_error_of_a_worker_is_told_from_rays_text() -> None:
    text = "The actor died: ray::Map()\n  File x.py\nearn.errors.EarnError: k is 99. This bundle returns 1 to 24.\n"
    assert _reason(RuntimeError(text)) == "k is 99. This bundle returns 1 to 24."
    assert _reason(RuntimeError("lost\nmore")).startswith("Ray stopped the run (lost).")


def test_the_command_prints_its_figures(
    toy_bundle: Path, tmp_path: Path, histories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(toy_bundle), str(histories), "--out", str(tmp_path / "recs"), "-k", "3"]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["answered"] == 23
    assert "users: 23 of 23" in printed.err
    assert main(command) == 0
    assert "of which 3 were done before" in capsys.readouterr().out
    assert batch.RUN_FILE in {path.name for path in (tmp_path / "recs").iterdir()}
