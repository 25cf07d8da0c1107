"""What EARN is compared with on the same splits, users and rules: popularity, item-kNN, SASRec, and RecBole's models.

    popularity   most training interactions first
    item-knn     score(j) = sum over the history of decay^age cos(i, j), the cosine of the items' sets of
                 training users; the decay is one of DECAYS, chosen by the validation users' NDCG@10
    sasrec       a causal transformer over item and position embeddings; item embeddings times the output are the logits
                 of all items, and the loss is their cross entropy at every position
                 (Kang and McAuley, arXiv 1808.09781; with this loss: Klenitskiy and Vasilev, arXiv 2309.07602)
    recbole-*    RecBole's own SASRec and GRU4Rec, with its defaults and cross entropy over all items; the epoch is
                 chosen by the validation users' NDCG@10

`python -m experiments set` trains and asks the first three. Lists leave the history out; what they give where it may
return stands beside. Ties keep the items' order. RecBole needs an environment of its own, for it does not run with
newer versions of these:

    python3 -m venv .recbole && .recbole/bin/pip install torch==2.13.0
    .recbole/bin/pip install recbole==1.2.1 "setuptools<81" numpy==1.26.4 "scipy<1.13" "pandas<2.3"
    .recbole/bin/python -m experiments recbole

It reads its benchmark files: `data.train.inter` has a row for every item but a user's first one, with the newest items
before it; `data.valid.inter` and `data.test.inter` a row per user. Its evaluation of sequential models lets the history
into the lists: FullSortEvalDataLoader masks it for the other models alone. Here its trainer leaves it out, and test
users are asked through `target_ranks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from earn.console import note
from earn.data.dataset import Dataset
from earn.errors import EarnError
from earn.files import written_whole
from earn.metrics import CUTOFFS, NOT_FOUND, Example, ndcg

DECAYS = (1.0, 0.8, 0.6)
ASKED_AT_ONCE = 256  # users
SORTED_AT_ONCE = 8  # batches whose users are sorted by length, so that little is padded
STATE = "sasrec.pt"  # of a training that goes on
PARTS_OF_BATCH = 16  # RecBole's batches have 2048 rows
NAME, PARTS = "data", ("train", "valid", "test")  # of RecBole's benchmark files
HEADER = "user_id:token\titem_id:token\titem_id_list:token_seq"
Users = Sequence[Example]
Sequences = Sequence[NDArray[np.int64]]  # item indices
Scores = Callable[[Users], NDArray[np.float32]]  # users -> [users,items]


@dataclass(frozen=True)
class RivalSettings:
    """How SASRec is trained; the others read the number of validation users alone."""

    width: int = 256
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.5
    learning_rate: float = 1e-3
    batch_size: int = 128  # windows
    max_history: int = 50  # items of a window and of a user's history
    epochs: int = 100  # at the most
    patience: int = 4  # epochs without a better NDCG@10 on the validation users, after which training ends
    validation_users: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What a rival gave."""

    scores: Scores
    valid_ndcg: float | None  # NDCG@10 of the validation users, where something was chosen by it
    parameters: int
    seconds: float | None  # of training


def measure_popularity(dataset: Dataset, settings: RivalSettings, folder: Path) -> Measured:
    """Everybody gets the most popular items that the history lacks."""
    items = len(dataset.interactions.item_ids)
    counts = np.bincount(np.concatenate(dataset.split.train), minlength=items).astype(np.float32)
    return Measured(lambda chosen: np.tile(counts, (len(chosen), 1)), None, items, None)


def measure_knn(dataset: Dataset, settings: RivalSettings, folder: Path | None = None) -> Measured:
    """Items chosen by the same users as those of the history (module docstring)."""
    cosines = item_cosines(dataset.split.train, len(dataset.interactions.item_ids))
    judges = dataset.examples("valid", settings.validation_users)
    by_decay = {decay: mean_ndcg(knn_scores(cosines, decay), judges) for decay in DECAYS}
    best = max(by_decay, key=lambda decay: by_decay[decay])
    note(f"item-knn: NDCG@10 of validation users by decay: {by_decay}")
    return Measured(knn_scores(cosines, best), by_decay[best], cosines.nnz, None)


def measure_sasrec(dataset: Dataset, settings: RivalSettings, folder: Path) -> Measured:
    """Trains SASRec until the validation users gain nothing; the scores are those of its best weights."""
    model = Sasrec(len(dataset.interactions.item_ids), settings)
    judges = dataset.examples("valid", settings.validation_users)
    best, seconds = train(model, dataset.split.train, judges, settings, folder / STATE)
    return Measured(model.scores, best, sum(weight.numel() for weight in model.parameters()), seconds)


def target_ranks(scores: Scores, users: Users, exclude_history: bool = True) -> NDArray[np.int64]:
    """The rank [users] of each target, from 0, among the items that the history lacks or among all.

    NOT_FOUND beyond the widest cutoff.
    """
    ranks: list[int] = []
    for start in range(0, len(users), ASKED_AT_ONCE):
        chosen = users[start : start + ASKED_AT_ONCE]
        for example, row in zip(chosen, scores(chosen), strict=True):
            if exclude_history:
                row[example.history] = -np.inf
            own = row[example.target]
            ahead = int((row > own).sum() + (row[: example.target] == own).sum())
            ranks.append(ahead if ahead < max(CUTOFFS) and own > -np.inf else NOT_FOUND)
    return np.array(ranks, np.int64)


def mean_ndcg(scores: Scores, users: Users) -> float:
    """NDCG@10, the history left out."""
    return float(ndcg(target_ranks(scores, users), 10).mean())


def item_cosines(sequences: Sequences, items: int) -> Any:
    """Cosines of the items' sets of users, sparse [items,items], 0 on the diagonal."""
    from scipy.sparse import csr_matrix, diags

    user = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    chosen = csr_matrix((np.ones(len(user), np.float32), (user, np.concatenate(sequences))), (len(sequences), items))
    chosen.data[:] = 1  # an item chosen twice by a user counts once
    together = (chosen.T @ chosen).tocsr()
    scale = diags(1 / np.sqrt(np.maximum(1, together.diagonal())))
    together.setdiag(0)
    return (scale @ together @ scale).tocsr()


def knn_scores(cosines: Any, decay: float) -> Scores:
    """The scores of item-kNN (module docstring); the newest item's age is 0."""
    from scipy.sparse import csr_matrix

    def scores(users: Users) -> NDArray[np.float32]:
        lengths = [len(example.history) for example in users]
        weights = np.concatenate([decay ** np.arange(length)[::-1] for length in lengths])
        columns = np.concatenate([example.history for example in users])
        rows = np.repeat(np.arange(len(users)), lengths)
        histories = csr_matrix((weights, (rows, columns)), (len(users), cosines.shape[0]))
        dense: NDArray[np.float32] = (histories @ cosines).toarray().astype(np.float32)
        return dense

    return scores


class Sasrec(nn.Module):
    """A causal transformer over a history's items; histories stand at the left, and what pads them comes after."""

    def __init__(self, items: int, settings: RivalSettings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        width, dropout = settings.width, settings.dropout
        self.most = settings.max_history
        self.items = nn.Embedding(items, width)
        self.positions = nn.Embedding(self.most, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, settings.heads, width, dropout, batch_first=True, norm_first=True)
            for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(width)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, histories: Tensor, last: Tensor | None = None) -> Tensor:
        """Outputs [B,L,width] of item indices [B,L]; the output at a place has seen the items up to there.

        With `last` [1], of one history, every item's score [items] of what comes after the item in that place.
        """
        length = histories.shape[1]
        hidden = self.dropout(self.items(histories) + self.positions.weight[:length])
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        outputs: Tensor = self.norm(hidden)
        return outputs if last is None else functional.linear(outputs[0, last], self.items.weight)[0]

    def loss(self, windows: Sequences) -> Tensor:
        """The mean cross entropy over all items, of every item of the windows but each first one."""
        rows, lengths = padded(windows)
        is_real = torch.arange(rows.shape[1]) < lengths[:, None]
        outputs = self(rows[:, :-1])[is_real[:, 1:]]
        return functional.cross_entropy(outputs @ self.items.weight.T, rows[:, 1:][is_real[:, 1:]])

    @torch.no_grad()
    def scores(self, users: Users) -> NDArray[np.float32]:
        """Every item's score [users,items] after the newest items of each history."""
        self.eval()
        rows, lengths = padded([example.history[-self.most :] for example in users])
        last = self(rows)[torch.arange(len(users)), lengths - 1]
        found: NDArray[np.float32] = (last @ self.items.weight.T).numpy()
        return found


def padded(rows: Sequences) -> tuple[Tensor, Tensor]:
    """The rows [B,L] with zeros behind them, and their lengths [B]."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True), torch.tensor(list(map(len, rows)))


def windows_of(sequences: Sequences, most: int) -> list[NDArray[np.int64]]:
    """Sequences cut from their ends into windows of at most `most` inputs; each item but a first one is one target."""
    found = []
    for sequence in sequences:
        for end in range(len(sequence), 1, -most):
            found.append(sequence[max(0, end - most - 1) : end])
    return found


def batches(windows: Sequences, size: int, generator: np.random.Generator) -> Iterator[list[NDArray[np.int64]]]:
    """All windows in a random order, in batches; those of a few batches are sorted by length and dealt out again."""
    order = generator.permutation(len(windows))
    for start in range(0, len(order), size * SORTED_AT_ONCE):
        near = sorted(order[start : start + size * SORTED_AT_ONCE].tolist(), key=lambda index: len(windows[index]))
        parts = [near[first : first + size] for first in range(0, len(near), size)]
        for part in generator.permutation(len(parts)).tolist():
            yield [windows[index] for index in parts[part]]


def train(
    model: Sasrec, sequences: Sequences, judges: Users, settings: RivalSettings, state_file: Path
) -> tuple[float, float]:
    """Trains with early stopping and leaves the best epoch's weights in the model; goes on from the state file.

    Returns:
        the best NDCG@10 of the validation users, and the seconds of training.
    """
    windows = windows_of(sequences, settings.max_history)
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate, betas=(0.9, 0.98))
    state: dict[str, Any] = {"by_epoch": [], "seconds": 0.0, "best": None}
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    by_epoch: list[float] = state["by_epoch"]
    while len(by_epoch) < settings.epochs and not _is_done(by_epoch, settings.patience):
        began, epoch = time.monotonic(), len(by_epoch)
        torch.manual_seed(settings.seed + epoch)
        model.train()
        for batch in batches(windows, settings.batch_size, np.random.default_rng((settings.seed, epoch))):
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
        state["seconds"] += time.monotonic() - began
        by_epoch.append(mean_ndcg(model.scores, judges))
        note(f"epoch {epoch + 1}: loss {loss.item():.3f}, NDCG@10 {by_epoch[-1]:.4f}, {state['seconds']:.0f} s in all")
        if by_epoch[-1] == max(by_epoch):
            state["best"] = {name: weight.clone() for name, weight in model.state_dict().items()}
        with written_whole(state_file) as beside:
            torch.save({**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, beside)
    model.load_state_dict(state["best"])
    return max(by_epoch), state["seconds"]


def _is_done(by_epoch: Sequence[float], patience: int) -> bool:
    """Whether the last epochs gave nothing better than what was before them."""
    return len(by_epoch) > patience and max(by_epoch[-patience:]) <= max(by_epoch[:-patience])


def measure_recbole(kind: str, dataset: Dataset, settings: RivalSettings, folder: Path) -> Measured:
    """Trains a model of RecBole; the scores are those of its best weights.

    Raises:
        EarnError: RecBole is not installed.
    """
    if find_spec("recbole") is None:
        raise EarnError("RecBole is not installed. experiments/rivals.py says how to make an environment for it.")
    from recbole.data.interaction import Interaction

    judges, most = dataset.examples("valid", settings.validation_users), settings.max_history
    write_benchmark(folder / NAME, dataset.split.train, judges, dataset.examples(), most)
    model, items, best, seconds = _train_recbole(kind, dataset, judges, settings, folder)

    @torch.no_grad()
    def scores(users: Users) -> NDArray[np.float32]:
        rows, lengths = padded([items[example.history[-most:]] for example in users])
        asked = {"item_id_list": functional.pad(rows, (0, most - rows.shape[1])), "item_length": lengths}
        found: NDArray[np.float32] = model.full_sort_predict(Interaction(asked).to(model.device)).cpu().numpy()
        return np.where(items > 0, found[:, items], -np.inf).astype(np.float32)

    return Measured(scores, best, sum(weight.numel() for weight in model.parameters()), seconds)


def write_benchmark(folder: Path, sequences: Sequences, valid: Users, test: Users, most: int) -> None:
    """Writes RecBole's benchmark files of item indices; a history keeps its newest `most` items.

    In training, user n is the n-th sequence; validation and test users have names of their own, for their histories
    are told by their rows alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [
        Example(f"u{user}", items[:place], int(items[place]))
        for user, items in enumerate(sequences)
        for place in range(1, len(items))
    ]
    for part, examples in zip(PARTS, (targets, valid, test), strict=True):
        with (folder / f"{NAME}.{part}.inter").open("w", encoding="utf-8") as file:
            file.write(HEADER + "\n")
            for index, it in enumerate(examples):
                user = it.user if part == "train" else f"{part}{index}"
                file.write(f"{user}\t{it.target}\t{' '.join(map(str, it.history[-most:].tolist()))}\n")


def _train_recbole(
    kind: str, dataset: Dataset, judges: Users, settings: RivalSettings, folder: Path
) -> tuple[Any, NDArray[np.int64], float, float]:
    """The model with its best weights, its id of each of our items (0: it never saw it), NDCG@10 and seconds."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    config = Config(model=kind, dataset=NAME, config_dict=_options(settings, folder))
    init_seed(settings.seed, True)
    own = create_dataset(config)
    parts = data_preparation(config, own)
    tokens = own.field2token_id["item_id"]
    items = np.array([tokens.get(str(item), 0) for item in range(len(dataset.interactions.item_ids))], np.int64)
    histories = {own.field2token_id["user_id"][f"valid{user}"]: it.history for user, it in enumerate(judges)}

    class LeavesHistoryOut(Trainer):  # type: ignore[misc]
        def _train_epoch(self, train_data: Any, epoch: int, *_: Any, show_progress: bool = False) -> Any:
            return super()._train_epoch(train_data, epoch, loss, show_progress)

        def _full_sort_batch_eval(self, batched_data: Any) -> Any:
            interaction, scores, users, targets = super()._full_sort_batch_eval(batched_data)
            for row, user in enumerate(interaction["user_id"].tolist()):
                scores[row, items[histories[user]]] = -torch.inf
            return interaction, scores, users, targets

    model = get_model(kind)(config, parts[0].dataset)
    loss = partial(loss_by_length, lambda rows: model.calculate_loss(Interaction(rows)))
    torch.autograd.set_detect_anomaly(False)  # one of RecBole's models turns it on for all, and it takes a third longer
    trainer, began = LeavesHistoryOut(config, model), time.monotonic()
    best, _ = trainer.fit(*parts[:2], callback_fn=lambda epoch, ndcg: note(f"epoch {epoch + 1}: NDCG@10 {ndcg:.4f}"))
    seconds = time.monotonic() - began
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    return model.eval(), items, float(best), seconds


def loss_by_length(loss: Callable[[dict[str, Tensor]], Tensor], batch: Any) -> Tensor:
    """The mean loss of RecBole's batch by that of some rows, those of like length: what pads them is not worked out."""
    by_length, losses = batch["item_length"].argsort(), []
    for chosen in by_length.chunk(PARTS_OF_BATCH):
        rows = {name: batch[name][chosen] for name in ("item_id", "item_id_list", "item_length")}
        rows["item_id_list"] = rows["item_id_list"][:, : rows["item_length"].max()]
        losses.append(loss(rows) * len(chosen))
    return torch.stack(losses).sum() / len(by_length)


def _options(settings: RivalSettings, folder: Path) -> dict[str, Any]:
    """What differs from RecBole's defaults."""
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
        "benchmark_filename": list(PARTS),
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": settings.max_history,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
        "epochs": settings.epochs,
        "stopping_step": settings.patience,
        "seed": settings.seed,
        "use_gpu": torch.cuda.is_available(),
    }


# By the run's method.
MEASURES: Mapping[str, Callable[[Dataset, RivalSettings, Path], Measured]] = {
    "popularity": measure_popularity,
    "item-knn": measure_knn,
    "sasrec": measure_sasrec,
    "recbole-sasrec": partial(measure_recbole, "SASRec"),
    "recbole-gru4rec": partial(measure_recbole, "GRU4Rec"),
}
