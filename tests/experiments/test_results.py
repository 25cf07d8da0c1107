from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earn.errors import EarnError
from earn.files import write_json
from experiments import results
from experiments.grid import PRESETS, RUNS, Run
from experiments.tables import TABLES, Line, Row, run_name, table


def row(variant: str, recall: float, k: int = 2, seed: int = 0, **others: Any) -> Row:
    run = Run("beauty", "tiny-llama", variant=variant, early_layers=0 if variant == "dense" else k, seed=seed)
    difference = {"recall@10": [0.003, -0.001, 0.007], "ndcg@10": [0.001, -0.001, 0.002]}
    return {
        "data": "beauty", "method": "tiger", "backbone": "tiny-llama", "early_layers": k, "layers": 8,
        "variant": variant, "seed": seed, "recipe": "", "recall@10": recall, "ndcg@10": recall / 2,
        "interval": {"recall@10": [recall - 0.01, recall + 0.01], "ndcg@10": [0.0, recall]},
        **({} if variant == "dense" else {"difference": difference}),
        "valid_ndcg@10": 0.05, "training_seconds": 90.0, "parameters": 900_000,
        "settings": {"epochs": 12, "batch_size": 64, "learning_rate": 2e-3, "dropout": 0.1, "hidden_dropout": 0.0},
        "command": f"python -m experiments cpu --only {run.name}", **others,
    }  # fmt: skip


def page(*rows: Row) -> str:
    return "\n".join(table(name, rows) for name in TABLES)


def test_the_page_says_what_the_rows_say() -> None:
    name, dense = "beauty, tiger, tiny-llama", row("dense", 0.06, 8)
    rows = [dense, row("earn", 0.063), row("earn", 0.067, seed=1), row("no-suffix", 0.013), row("dense", 0.06, 8, 1)]
    text = page(*rows, row("earn", 0.069, recipe="batch-32"))
    assert f"| {name}: earn, k = 2 of 8 | .0500 | .0650 (.0550 to .0750) |" in text
    assert "2: .0630 to .0670 | +0.0030 (-0.0010 to +0.0070)" in text
    assert f"| {name}: earn, k = 2 of 8 | 108% | 108% |  |  |" in text
    assert "no-suffix, k = 2 of 8 | .0130 (.0030 to .0230) | .0065 (.0000 to .0130) | 1 | 21% | 24% |" in text
    assert f"| {name}, batch-32: earn, k = 2 of 8 | .0500 | .0690 (.0590 to .0790)" in text
    assert "| `cpu` | 72 | 69 |" in text
    assert f"| `{dense['command']}` | 0.90 | 12 | 64 | 0.002 | 0.1 | 0 | 2 |" in text


def test_the_suggested_k_stands_beside_the_smallest_good_one() -> None:
    dense = row("dense", 0.06, 8, attention={"suggestions": {"cut": 5}})
    worse = row("earn", 0.05, 1, difference={"recall@10": [-0.02, -0.03, -0.01], "ndcg@10": [0.0, -0.01, 0.01]})
    assert "tiny-llama | 5 | 2 |  |" in table("suggested", [dense, row("earn", 0.06)])  # of one k there is no smallest
    assert "tiny-llama | 5 | 1, 2 | 2 |" in table("suggested", [dense, row("earn", 0.06), worse])


def test_the_gates_verdict_stands_in_a_line() -> None:
    verdict = {
        "passed": True, "users": 815, "beam_set_overlap": 0.9585, "size_ratio": 0.28,
        "ndcg@10": {"before": 0.0343, "after": 0.0347}, "refined": ["head"], "float_layers": [],
        "difference": {"recall@10": [0.001, -0.002, 0.004]},
    }  # fmt: skip
    line = "| 815 | 95.9% | 0.0343 to 0.0347 | +0.0010 (-0.0020 to +0.0040) | 28% | head refined | passes |"
    assert line in table("int8", [row("earn", 0.06, int8=verdict)])


def test_a_page_of_half_a_grid_is_a_page() -> None:
    alone = row("earn", 0.07)
    del alone["difference"]  # its dense model is not there yet
    for rows in ([], [row("dense", 0.06, 8)], [row("dense", 0.06, 8), row("untrained", 0.01)], [alone]):
        assert "| `cpu` | 72 |" in page(*rows)
        assert len(results.draw_all(rows)) == 3
    rows = [row("dense", 0.06, 8), row("earn", 0.05, 4), row("earn", 0.05, 4, 1), row("earn", 0.07)]
    assert "earn, k = 2 of 8" in table("twins", rows)  # a quarter of the layers, though another k has more seeds


def test_shares_are_of_the_same_seeds() -> None:
    whole = [row("earn", 0.2), row("earn", 0.1, seed=1)]
    for rows, share in (([0.2], 1), ([0.2, 0.4], 2)):
        line = Line([row("no-suffix", recall, seed=seed) for seed, recall in enumerate(rows)], whole)
        assert line.share() == pytest.approx(share)
    assert Line([row("no-suffix", 0.2, seed=2)], whole).share() is None
    assert Line([row("no-suffix", 0.2)], [row("earn", 0.0)]).share() is None


def test_the_pretrained_backbone_has_a_table_of_its_own() -> None:
    about: Row = {"data": "ml-100k", "method": "lcrec", "backbone": "smollm2", "layers": 30}
    dense, earn = (
        row(run.variant, recall, k, command=f"python -m experiments pretrained --only {run.name}", **about)
        for run, recall, k in zip(PRESETS["pretrained"].runs[:2], (0.1, 0.08), (30, 8), strict=True)
    )
    line = "| ml-100k, lcrec, smollm2: earn, k = 8 of 30 | .0800 (.0700 to .0900) | .0400 (.0000 to .0800) |"
    assert table("pretrained", [row("earn", 0.07)]) == "Not run yet."
    assert f"{line}  |  | +0.0030 (-0.0010 to +0.0070) |" in table("pretrained", [earn])
    assert f"{line} 80% | 80% | +0.0030 (-0.0010 to +0.0070) |" in table("pretrained", [dense, earn])
    assert "+0.0010 (-0.0010 to +0.0020) | 12 | 64 | 0.002 | 0.1 | 0 | 2 |" in table("pretrained", [dense, earn])


def test_pictures_show_what_the_rows_say() -> None:
    rows = [row("dense", 0.06, 8), *(row("earn", 0.06 + k / 1000, k) for k in (1, 2, 4)), row("no-suffix", 0.093)]
    shown = {name: content.decode() for name, content in results.draw_all(rows).items()}
    assert "beauty, tiger, tiny-llama<" in shown["sweep.svg"]
    assert ">150%<" in shown["ablations.svg"]  # .093 of .062
    assert ">24%<" in shown["ablations.svg"]  # the paper's
    assert "beauty, tiger, tiny-llama, seed 0<" in shown["twins.svg"]


def test_new_rows_take_the_place_of_old_ones_of_the_same_run() -> None:
    old, new, other = row("dense", 0.05, 8), row("dense", 0.0600000004, 8), row("earn", 0.07)
    found = results.merged([other, old], {run_name(new): new})
    assert [each["recall@10"] for each in found] == [0.06, 0.07]  # in the grid's order


def rival(method: str, recall: float, valid: float | None, recipe: str = "", **others: Any) -> Row:
    run = Run("beauty", "", method, "dense", recipe=recipe)
    command = f"python -m experiments set --only {run.name}"
    own = {"method": method, "backbone": "", "recipe": recipe, "valid_ndcg@10": valid, "command": command, "users": 9}
    return {**row("dense", recall, 0), **{f"{name}@{n}": recall for name in ("recall", "ndcg") for n in (5, 20)}, **own,
            "training_seconds": valid and 90.0, "settings": {"learning_rate": 1e-3, "width": 64}, **others}  # fmt: skip


def test_methods_stand_beside_their_rivals() -> None:
    ours: Row = {
        **{"method": "set", "backbone": "set-qwen2", "layers": 3},
        **{"recall@5": 0.07, "ndcg@5": 0.04, "recall@20": 0.2, "ndcg@20": 0.1},
        "to_sasrec": {"recall@10": [0.02, 0.01, 0.03], "ndcg@10": [0.01, 0.0, 0.02]},
        "rare": {
            **{"users": 4, "recall@10": 0.01, "ndcg@10": 0.005},
            "interval": {"recall@10": [0.0, 0.02], "ndcg@10": [0.0, 0.01]},
        },
    }
    worse, better = rival("sasrec", 0.09, 0.05), rival("sasrec", 0.08, 0.06, "width-128")
    rows = [row("earn", 0.1, 1, **ours), rival("popularity", 0.01, None), worse, better]
    methods = table("methods", rows)
    assert "| beauty, set, set-qwen2: earn, k = 1 of 3 | .0700 | .1000 (.0900 to .1100) | .2000 | .0400 |" in methods
    assert "| beauty, popularity | .0100 | .0100 (.0000 to .0200) |" in methods
    assert "beauty, sasrec, width-128 | .0800 |" in methods  # validation chooses, and not the test users
    assert "beauty, sasrec |" not in methods
    assert "| +0.0200 (+0.0100 to +0.0300) | +0.0100 (+0.0000 to +0.0200) |" in table("to sasrec", rows)
    assert "k = 1 of 3 | 4 | .0100 (.0000 to .0200) | .0050 (.0000 to .0100) |" in table("rare items", rows)
    assert "sasrec, width-128 | .0600 |" in table("sasrec", rows).splitlines()[2]
    assert f"| `{better['command']}` | 0.90 |  |  | 0.001 |  |  | 2 |" in page(*rows)
    assert table("methods", [row("earn", 0.1), better]) == "Not run yet."  # no data set with all codes at once


@pytest.mark.parametrize("same", [True, False])
def test_what_was_looked_at_afterwards_is_kept_with_the_figures_it_belongs_to(same: bool) -> None:
    dense, earn = row("dense", 0.05, 8), row("earn", 0.07, speed={"batch_speedup": 2})
    again = row("earn", 0.07 if same else 0.06)
    (found,) = results.merged([earn], {run_name(again): again})
    assert ("speed" in found) == same
    again = row("dense", 0.05 if same else 0.06, 8)
    assert ("difference" in results.merged([dense, earn], {run_name(again): again})[1]) == same
    known, again = rival("sasrec", 0.05, 0.05), rival("sasrec", 0.05 if same else 0.06, 0.05)
    beside = row("earn", 0.07, to_sasrec={"recall@10": [0.02, 0.01, 0.03]})
    assert ("to_sasrec" in results.merged([beside, known], {run_name(again): again})[0]) == same


def test_what_was_measured_is_collected(tmp_path: Path) -> None:
    with pytest.raises(EarnError, match="no finished run"):
        results.collect(tmp_path)
    names = [f"beauty/tiger-tiny-llama/{name}-seed0" for name in ("dense", "untrained-k2", "history-returns-k2")]
    for name, ranks in zip(names, ([0, 10, 3, -1], [0, 0, 3, -1], [0, 0, 0, 0]), strict=True):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "result.json", {"command": f"--only {name}"})
        np.save(tmp_path / name / "ranks.npy", np.array(ranks))
    write_json(tmp_path / names[1] / "speed.json", {"speedup": 2})
    rows = results.collect(tmp_path)
    assert rows[names[1]]["difference"]["recall@10"][0] == 3 / 4 - 2 / 4
    assert rows[names[1]]["speed"] == {"speedup": 2}
    assert "difference" not in rows[names[2]]  # the dense one is asked without the history
    assert rows.keys() <= RUNS.keys()


def test_the_difference_to_sasrec_is_to_the_one_that_validation_chose(tmp_path: Path) -> None:
    rows = {"beauty/set-set-qwen2/earn-k1-seed0": (0.0, [0, 1, -1]), "beauty/sasrec/dense-seed0": (0.1, [-1, -1, 1]),
            "beauty/sasrec/dense-width-128-seed0": (0.2, [0, -1, -1])}  # fmt: skip
    for name, (valid, ranks) in rows.items():
        (tmp_path / name).mkdir(parents=True)
        result = {"command": f"--only {name}", "data": "beauty", "valid_ndcg@10": valid}
        write_json(tmp_path / name / "result.json", result)
        np.save(tmp_path / name / "ranks.npy", np.array(ranks))
    found = results.collect(tmp_path)
    assert found["beauty/set-set-qwen2/earn-k1-seed0"]["to_sasrec"]["recall@10"][0] == pytest.approx(1 / 3)
    assert not any("to_sasrec" in found[name] for name in rows if "sasrec" in name)


def test_the_page_in_the_docs_is_what_its_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(["--check"]) == 0
    docs = Path(shutil.copytree(results.DOCS, tmp_path / "docs"))
    monkeypatch.setattr(results, "DOCS", docs)
    text = (docs / "results.md").read_text(encoding="utf-8")
    (docs / "results.md").write_text(text.replace("| .1820 (", "| .1920 ("), encoding="utf-8")
    assert results.main(["--check"]) == 1
    assert "results.md" in capsys.readouterr().err
    assert results.main([]) == 0
    assert (docs / "results.md").read_text(encoding="utf-8") == text
    (docs / "results.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"results\.json: holds no run\. Pass --collect"):
        results.main([])


def test_a_page_that_asks_for_an_unknown_table_is_refused() -> None:
    with pytest.raises(EarnError, match="no table 'nonsense'"):
        results.page("<!-- table: nonsense -->\n<!-- end -->", [])
