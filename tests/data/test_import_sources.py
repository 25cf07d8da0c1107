"""Where tables come from: folders, addresses, and the same data in several forms of file."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from earn.data import Interactions, load_interactions
from earn.data.download import FILES, cache_folder
from earn.data.identifiers import build_catalog
from earn.data.splits import split_of
from earn.data.tables.files import import_files
from earn.errors import EarnError
from tests.data.tables import HEADER, RATED, TWO, packed, read, sequences, write


def test_movielens_1m_is_read_from_its_three_files(tmp_path: Path) -> None:
    ratings = write(tmp_path / "ml-1m/ratings.dat", "1::2::5::978300761\n1::1::3::978300760\n")
    movies = "1::Toy Story (1995)::Animation|Children's\n2::Misérables, Les (1995)::Drama\n".encode("latin-1")
    items = write(tmp_path / "ml-1m/movies.dat", movies)
    data, _ = read(ratings, items, encoding="latin-1")
    assert (data.item_ids, data.titles) == (("1", "2"), ("Toy Story (1995)", "Misérables, Les (1995)"))
    with pytest.raises(EarnError, match=r"movies\.dat, line 2: byte 0xe9 is not UTF-8"):
        read(ratings, items)


def test_a_folder_is_read_where_its_tables_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "ratings-1.csv", TWO)
    write(tmp_path / "ratings-2.csv.gz", packed(HEADER + "v,x,1\nu,z,0\n"))
    write(tmp_path / "movies.csv", "movieId,title\nx,Ex\ny,Why\nz,Zed\n")
    write(tmp_path / "links.csv", "movieId,imdb\nx,1\n")
    data = load_interactions(tmp_path)
    assert sequences(data) == {"u": ["z", "x", "y"], "v": ["x"]}
    assert data.titles == ("Ex", "Why", "Zed")
    write(tmp_path / "tags.csv", "userId,movieId,tag,timestamp\nu,x,t,1\n")
    with pytest.raises(
        EarnError, match=r"different columns: ratings-1\.csv, ratings-2\.csv\.gz, tags\.csv\. Name one file"
    ):
        load_interactions(tmp_path)


@pytest.mark.skipif(
    not all((cache_folder() / "ml-100k" / name).is_file() for name in FILES),
    reason="MovieLens 100k is not in the cache; fetch it with earn.data.download.fetch_ml100k()",
)
def test_movielens_is_the_same_in_every_form(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    source = cache_folder() / "ml-100k"
    want = load_interactions("ml-100k")
    frame = pandas.read_csv(source / "ml-100k.inter", sep="\t")
    frame.columns = [name.partition(":")[0] for name in frame.columns]
    frame.to_csv(tmp_path / "ratings.csv", index=False)
    frame.to_csv(tmp_path / "u.data", sep="\t", header=False, index=False)
    frame.to_parquet(tmp_path / "ratings.parquet")
    for name in ("ratings.csv", "u.data", "ratings.parquet"):
        got, said = read(tmp_path / name, source / "ml-100k.item")
        assert "75,772 of 100,000 interactions share their time" in said
        assert got.user_ids == want.user_ids
        assert (got.item_ids, got.titles, got.metadata) == (want.item_ids, want.titles, want.metadata)
        assert all(np.array_equal(a, b) for a, b in zip(got.sequences, want.sequences, strict=True))
    assert sequences(Interactions.from_dataframe(frame)) == sequences(want)


def test_an_address_is_fetched_and_read_as_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("EARN_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "served" / "ratings.csv", RATED)
    want = sequences(load_interactions(path))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(path.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert sequences(load_interactions(f"{address}/ratings.csv")) == want
        assert import_files([f"{address}/ratings.csv"]).interactions.name == "ratings"
        with pytest.raises(EarnError, match=r"/none\.csv: cannot be fetched \(HTTP Error 404.*Check the address"):
            load_interactions(f"{address}/none.csv")
        server.shutdown()
    assert sequences(load_interactions(path.as_uri())) == want
    with fsspec.open("memory://bucket/ratings.csv", "wb") as file:
        file.write(path.read_bytes())
    assert sequences(load_interactions("memory://bucket/ratings.csv")) == want
    with pytest.raises(EarnError, match=r"nowhere://a/b\.csv: cannot be fetched"):
        load_interactions("nowhere://a/b.csv")
    with pytest.raises(EarnError, match="names no file"):
        load_interactions("s3://bucket/")


def test_one_table_in_every_form_gives_the_same_histories_and_identifiers(tmp_path: Path) -> None:
    """Which is all that a training knows of it, so that bundles of the same seed give the same lists."""
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    rows = generator.integers(1, 30, (200, 3))
    frame = pandas.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    frame["timestamp"] = 880_000_000 + generator.integers(0, 50, 200)  # with ties
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "u.data", sep="\t", header=False, index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    typed = [f"{name}:{'float' if name in ('rating', 'timestamp') else 'token'}" for name in frame.columns]
    frame.to_csv(tmp_path / "a.inter", sep="\t", header=typed, index=False)
    want = load_interactions(tmp_path / "a.inter")
    others = [load_interactions(tmp_path / name) for name in ("a.csv", "u.data", "a.parquet")]
    for got in (*others, Interactions.from_dataframe(frame)):
        assert sequences(got) == sequences(want)
        assert (got.user_ids, got.item_ids, got.titles) == (want.user_ids, want.item_ids, want.titles)
        built, expected = (build_catalog(data, split_of(data).train) for data in (got, want))
        assert built.identifiers == expected.identifiers
