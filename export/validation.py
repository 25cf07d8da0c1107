"""How a model is judged while it is trained: NDCG@10 of the constrained search that its bundle will do."""

from __future__ import annotations

from collections.abc import Callable

from earn.data import Dataset, sample
from earn.export.stages import torch_recommender
from earn.metrics import ndcg
from earn.model.earn_model import EarnModel
from earn.runtime.evaluation import target_ranks
from earn.settings import TrainSettings


def search_validation(
    dataset: Dataset,
    exclude_history: bool,
    most_users: int = TrainSettings.validation_users,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> Callable[[EarnModel], float]:
    """The function that `earn.model.training.train` selects epochs by.

    Args:
        exclude_history: whether lists leave their users' histories out.
        most_users: a sample of so many validation users is asked.
        progress: what goes on -> a callback (done, all); called once per validation.

    Raises:
        EarnError: the data has no validation users.
    """
    users = sample(dataset.examples("valid"), most_users)

    def validate(model: EarnModel) -> float:
        update = progress and progress("validation users")
        ranks = target_ranks(torch_recommender(model), users, dataset.interactions.item_ids, exclude_history, update)
        return float(ndcg(ranks, 10).mean())

    return validate
