"""What the attention analysis measures, and the rule that suggests a k from it. No torch.

Places. Prompts differ in length, so their columns are laid onto places that all users share: the first HEAD tokens, the
middle (the history, but for its ends) in BINS equal parts, the last TAIL tokens, then the generated tokens one by one.
A row's attention on the places sums to 1.

Reading rows. All figures are of the rows that predict: the prompt's last row and the generated tokens. A token that
these rows do not attend to cannot influence the recommendation through that layer. Rows near the prompt's start are
left out: they attend to few columns, so that their attention would look concentrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

HEAD = 3  # first tokens of the prompt; attention on them is the head sink (paper)
TAIL = 4  # last tokens of the prompt; attention on them is the tail sink (paper)
BINS = 16  # parts of the middle
ABOVE = 0.05  # a probability above this counts for the sparsity (paper)

# The most that a cut may raise the loss, as a share of what the cut above the first layer does. That one sets the
# scale because losses of different data and vocabularies have none in common; where it costs anything, the rule
# suggests 2 layers at the least. Half is a guess on the safe side: the models of docs/results.md that were trained with
# cuts that cost more than that lost nothing by it that could be told from chance.
MOST_RISE = 0.5
CERTAIN = 2  # standard errors by which the cut above the first layer must raise the loss


@dataclass(frozen=True)
class LayerFigures:
    """One layer's attention, averaged over the heads and over the reading rows of all users."""

    layer: int  # from 1
    is_late: bool  # sees registers and generated tokens alone
    columns: float  # rows that a reading row may see
    sparsity: float  # share of a row's attention probabilities, over the columns it may see, that are above ABOVE
    received: tuple[float, ...]  # [places], the share of attention on each place; they sum to 1
    seen: tuple[bool, ...]  # [places], whether some row may see the place at all

    @property
    def head(self) -> float:
        """The head sink: attention on the first HEAD tokens of the prompt."""
        return sum(self.received[:HEAD])

    @property
    def middle(self) -> float:
        """Attention on the prompt's tokens between head and tail, which are history but for an instruction's text."""
        return sum(self.received[HEAD : HEAD + BINS])

    @property
    def tail(self) -> float:
        """The tail sink: attention on the last TAIL tokens of the prompt."""
        return sum(self.received[HEAD + BINS : HEAD + BINS + TAIL])

    @property
    def generated(self) -> float:
        """Attention on generated tokens."""
        return sum(self.received[HEAD + BINS + TAIL :])


@dataclass(frozen=True)
class Analysis:
    """The attention of a model on the prompts of many users, each followed by its target's codes but the last."""

    users: int
    rows: int  # reading rows of all users
    early_layers: int  # layers that see every token; all of them in a dense model
    prefix: int  # prompt rows at the start that stay visible above a cut
    suffix: int  # prompt rows at the end that do
    layers: tuple[LayerFigures, ...]
    cut: tuple[float, ...]  # loss with layers above k cut off the history, k = 1 .. early_layers; the last is uncut
    errors: tuple[float, ...]  # standard error of each loss's rise over the last one

    @property
    def is_dense(self) -> bool:
        """Whether every layer sees every token, so that any k may be read off."""
        return self.early_layers == len(self.layers)

    @property
    def suggestions(self) -> dict[str, int | None]:
        """The k that the cut rule suggests, under its name; None where it suggests no cut below the model's own."""
        return {"cut": k_by_cut(self.cut, self.errors)}

    def as_json(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        layers = [
            {**asdict(row), "head": row.head, "middle": row.middle, "tail": row.tail, "generated": row.generated}
            for row in self.layers
        ]
        return {**asdict(self), "layers": layers, "places": place_names(self), "suggestions": self.suggestions}


def k_by_cut(losses: Sequence[float], errors: Sequence[float]) -> int | None:
    """The smallest k whose cut raises the loss by at most MOST_RISE of what the cut at k = 1 does; None: none does.

    None as well where the cut at k = 1 costs nothing that CERTAIN standard errors would tell from chance: there is no
    scale then. The users are too few, or the model makes nothing of the history.

    Args:
        losses: with layers above k cut off the history, k = 1, 2, ...; the last one is the uncut model's.
        errors: standard error of each loss's rise over the last one.
    """
    most = most_loss(losses, errors)
    return None if most is None else next((k for k, loss in enumerate(losses[:-1], 1) if loss <= most), None)


def most_loss(losses: Sequence[float], errors: Sequence[float]) -> float | None:
    """The loss up to which the cut rule takes a cut; None: nothing sets its scale. Arguments as in `k_by_cut`."""
    rise = losses[0] - losses[-1]
    return losses[-1] + MOST_RISE * rise if rise > CERTAIN * errors[0] else None


def place_names(found: Analysis) -> list[str]:
    """A name for each place: 1 .. and .. -1 for the prompt's ends, m1 .. for the middle, g1 .. for what follows."""
    generated = len(found.layers[0].received) - HEAD - BINS - TAIL
    return [
        *(f"{place}" for place in range(1, HEAD + 1)),
        *(f"m{place}" for place in range(1, BINS + 1)),
        *(f"{place}" for place in range(-TAIL, 0)),
        *(f"g{place}" for place in range(1, generated + 1)),
    ]


def suggestions_text(found: Analysis) -> list[str]:
    """What the cut rule suggests, in sentences, and what cannot be suggested."""
    own = f"{found.early_layers}" if found.is_dense else f"the model's own, {found.early_layers}"
    (k,) = found.suggestions.values()
    statement = (
        f"cutting the layers above k off raises the loss by at most {MOST_RISE:.0%} of what it does at k = 1, where it "
        f"must cost more than {CERTAIN} standard errors"
    )
    sentences = [
        f"By the cut rule no k below {own}: there is none such that {statement}."
        if k is None
        else f"By the cut rule k = {k} of {len(found.layers)} layers: the smallest k such that {statement}."
    ]
    if most_loss(found.cut, found.errors) is None and len(found.cut) > 1:
        sentences.append(
            f"What the cut above layer 1 costs is less than {CERTAIN} standard errors: take more users. If it stays "
            "so, this model makes little of the history."
        )
    if k is not None and found.is_dense:
        sentences.append(
            "Take this for a cautious end: the weights never met the cut, and training can repair its harm. A smaller "
            "k, trained as EARN, may rank as well."
        )
    if not found.is_dense:
        sentences.append(
            f"Of a k above {found.early_layers} this model says nothing: its later layers never saw a history. Analyze "
            "a dense model of the same backbone to choose freely."
        )
    return sentences
