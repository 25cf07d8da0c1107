"""Fine-tuned recommenders as they are published: Hugging Face folders that have learned identifier tokens.

`EarnModel.from_backbone` keeps the rows of tokens that the tokenizer knows, in embedding and head alike, so such a
folder is trained further as any backbone is. Here it is taken as it is:

    model = published_model("models/MiniOneRec", catalog, Template(text=THEIR_PROMPT))
    export_bundle(model, "bundle", histories)
"""

from __future__ import annotations

from pathlib import Path

from earn.catalog import Catalog
from earn.errors import EarnError
from earn.identifier_tokens import identifier_tokens
from earn.model.earn_model import EarnModel
from earn.model.tokenizer import load_tokenizer
from earn.prompts import Template


def published_model(
    folder: str | Path, catalog: Catalog, template: Template | None = None, max_history: int = 20
) -> EarnModel:
    """A published recommender without any training: dense, with every weight as it was published.

    Args:
        folder: a Hugging Face folder or GGUF file.
        catalog: the items; each token of their identifiers is one that the folder's tokenizer knows.
        template: the publisher's prompt. With other words than it was trained with a model recommends worse.
        max_history: items that the prompt holds.

    Raises:
        EarnError: the folder cannot be read, or has not learned the catalog's tokens.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise EarnError(f"{folder}: has no tokenizer, so nobody knows which rows its identifiers have. Add its files.")
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in catalog.tokens if token not in vocabulary]:
        known = identifier_tokens(vocabulary)
        form = f"Its own are of the form {known.form}" if known else "It has none of a known form"
        raise EarnError(
            f"{folder}: has not learned {len(missing)} of the {len(catalog.tokens)} identifier tokens, such as "
            f"{missing[0]!r}. {form}. Give the identifiers that it was trained with, or train it: earn train DATA "
            f"--backbone {folder} --out CKPT"
        )
    return EarnModel.dense(folder, catalog, max_history, template)
