from __future__ import annotations

from itertools import cycle

import pytest

from earn.config import Prompt
from earn.errors import EarnError
from earn.export.stages import bundle_model, torch_recommender
from earn.model.earn_model import EarnModel
from earn.model.reference import reference_search
from earn.model.stage import DenseHead
from tests.support import (
    FAMILIES,
    RULES,
    Agreement,
    assert_close,
    pairs,
    random_catalog,
    small_model,
    weight_of,
)

TEXT = Prompt(head=(0,), separator=(2,), tail=(3,))  # BOS, and two of the identifiers' own tokens


@pytest.fixture(scope="module")
def model() -> EarnModel:
    return small_model("tiny-qwen3", prompt=TEXT, early_layers=2, prefix_registers=2, max_history=5)


def test_a_bundle_numbers_its_tokens_identifiers_first(model: EarnModel) -> None:
    tokens = len(model.catalog.tokens)  # in the model: BOS is 0, then the identifiers' tokens, then the registers
    config = bundle_model(model).manifest.model
    assert config.token_ids == tuple(range(tokens))
    assert config.prompt == Prompt(head=(tokens,), separator=(1,), tail=(2,))
    assert config.prefix_ids == (tokens + 1, tokens + 2)
    assert config.suffix_ids == (tokens + 3,)
    assert (config.early_layers, config.max_history) == (2, 5)


def test_the_embedding_keeps_the_rows_that_a_prompt_can_hold(model: EarnModel) -> None:
    bundle = bundle_model(model)
    table, whole = weight_of(bundle.stages["early"].get_submodule("embedding")), weight_of(model.model.embed_tokens)
    earn = model.earn
    assert_close(whole[[*earn.token_ids, 0, *earn.prefix_ids, *earn.suffix_ids]], table, 0.0)
    assert bundle.manifest.sizes.embedding_rows == len(table)


@pytest.mark.parametrize("scoring", RULES)
def test_the_head_keeps_the_rows_that_the_rule_reads(model: EarnModel, scoring: str) -> None:
    bundle = bundle_model(model, scoring)
    rows, whole = weight_of(bundle.stages["late"].get_submodule("head")), weight_of(model.lm_head)
    known = list(model.earn.token_ids)
    others = [0, *model.earn.prefix_ids, *model.earn.suffix_ids] if scoring == "vocab" else []
    assert_close(whole[known + others], rows, 0.0)
    assert bundle.manifest.sizes.logits == len(known) + len(others)
    assert bundle.manifest.scoring == scoring


def test_sizes_and_limits_are_the_models(model: EarnModel) -> None:
    manifest = bundle_model(model, max_batch=3, max_beams=7).manifest
    sizes, limits = manifest.sizes, manifest.limits
    assert (sizes.family, sizes.layers, sizes.early_layers) == ("qwen3", 4, 2)
    assert (sizes.hidden, sizes.intermediate, sizes.heads) == (32, 64, 4)
    assert (sizes.key_value_heads, sizes.head_size) == (2, 16)
    assert (limits.batch, limits.beams, limits.history, limits.depth) == (3, 7, 5, 4)
    assert manifest.tools.keys() >= {"earn-edge", "torch", "transformers", "onnx"}
    assert limits.prompt == 2 + 1 + 5 * 4 + 4 * 1 + 1 + 1
    assert (limits.head, limits.prefix, limits.readout) == (3, 2, 1)


def test_an_unknown_rule_is_refused(model: EarnModel) -> None:
    with pytest.raises(EarnError, match="no scoring rule 'best'"):
        bundle_model(model, "best")


def test_a_dense_models_late_stage_is_its_head_alone() -> None:
    model = small_model(prefix_registers=0, suffix_registers=0)
    bundle = bundle_model(model)
    assert isinstance(bundle.stages["late"], DenseHead)
    assert bundle.manifest.model.prefix_ids == bundle.manifest.model.suffix_ids == ()
    assert {name for name, _ in bundle.stages["late"].named_parameters()} == {"norm.weight", "head.weight"}


def test_the_layers_are_the_models_own(model: EarnModel) -> None:
    stages = bundle_model(model).stages
    own = {parameter.data_ptr() for parameter in model.parameters()}
    cut = {"early": {"embedding.weight"}, "late": {"head.weight"}}
    for name, stage in stages.items():
        assert {key for key, parameter in stage.named_parameters() if parameter.data_ptr() not in own} == cut[name]


@pytest.mark.parametrize(("name", "scoring"), zip(cycle(FAMILIES), RULES, strict=False))
def test_a_checkpoint_recommends_before_any_export(name: str, scoring: str) -> None:
    model = small_model(name, random_catalog(20), prompt=TEXT, max_history=5)
    agreement = Agreement()
    for history in ([1, 2, 3], [4]):
        want = reference_search(model, history, scoring=scoring)
        agreement.add(str(history), want, pairs(torch_recommender(model, scoring).recommend(history)))
    agreement.check()
