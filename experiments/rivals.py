"""What EARN is compared with on the same splits, users and rules: popularity, neighbours, SASRec, and RecBole's models.

    popularity   most training interactions first
    item-knn     score(j) = sum over the history of decay^age cos(i, j), the cosine of the items' sets of
                 training users; the decay is one of DECAYS, chosen by the validation users' NDCG@10
    neighbours   the same with the likeness that the method `set` starts from: of what stands near each other in
                 training histories, and is called alike (earn.data.neighbours)
    sasrec       a causal transformer over item and position embeddings; item embeddings times the output are the logits
                 of all items, and the loss is their cross entropy at every position
                 (Kang and McAuley, arXiv 1808.09781; with this loss: Klenitskiy and Vasilev, arXiv 2309.07602)
    recbole-*    RecBole's own SASRec and GRU4Rec (experiments.recbole_models)

`python -m experiments set` trains and asks all but the last. Lists leave the history out; what they give where it may
return stands beside. Ties keep the items' order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from earn.data.neighbours import likeness
from earn.files import written_whole
from earn.metrics import CUTOFFS, NOT_FOUND, Example, ndcg

DECAYS = (1.0, 0.8, 0.6, 0.4, 0.2)
ASKED_AT_ONCE = 256  # users
SORTED_AT_ONCE = 8  # batches whose users are sorted by length, so that little is padded
STATE = "sasrec.pt"  # of a training that goes on
Users = Sequence[Example]
Sequences = Sequence[NDArray[np.int64]]  # item indices
Scores = Callable[[Users], NDArray[np.float32]]  # users -> [users,items]
Likeness = Callable[[Any], NDArray[Any]]  # sparse weights of items [users,items] -> what is like them [users,items]


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
    return _with_best_decay(lambda weights: (weights @ cosines).toarray(), cosines.nnz, dataset, settings)


def measure_neighbours(dataset: Dataset, settings: RivalSettings, folder: Path | None = None) -> Measured:
    """Items that stand near those of the history in training histories, and are called alike."""
    alike = likeness(dataset.interactions, dataset.split.train)
    return _with_best_decay(lambda weights: alike.of_others(weights.T.toarray()).T, alike.numbers, dataset, settings)


def _with_best_decay(likeness_of: Likeness, numbers: int, dataset: Dataset, settings: RivalSettings) -> Measured:
    """Of the decays the one that is best for validation users."""
    judges, items = dataset.examples("valid", settings.validation_users), len(dataset.interactions.item_ids)
    by_decay = {decay: mean_ndcg(knn_scores(likeness_of, decay, items), judges) for decay in DECAYS}
    best = max(by_decay, key=lambda decay: by_decay[decay])
    note(f"NDCG@10 of validation users by decay: {by_decay}")
    return Measured(knn_scores(likeness_of, best, items), by_decay[best], numbers, None)


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


def knn_scores(likeness_of: Likeness, decay: float, items: int) -> Scores:
    """The scores of item-kNN (module docstring); the newest item's age is 0."""
    from scipy.sparse import csr_matrix

    def scores(users: Users) -> NDArray[np.float32]:
        lengths = [len(example.history) for example in users]
        weights = np.concatenate([decay ** np.arange(length)[::-1] for length in lengths])
        columns = np.concatenate([example.history for example in users])
        rows = np.repeat(np.arange(len(users)), lengths)
        return likeness_of(csr_matrix((weights, (rows, columns)), (len(users), items))).astype(np.float32)

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


# By the run's method.
MEASURES: Mapping[str, Callable[[Dataset, RivalSettings, Path], Measured]] = {
    "popularity": measure_popularity,
    "item-knn": measure_knn,
    "neighbours": measure_neighbours,
    "sasrec": measure_sasrec,
}
