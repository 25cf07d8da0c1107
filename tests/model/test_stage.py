from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from earn.config import MASKED
from earn.model.stage import attend, causal_bias, rotate
from tests.support import FAMILIES, assert_close, small_model


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def no_past(name: str, layers: int) -> torch.Tensor:
    """An empty cache for two users of a small backbone."""
    return torch.zeros(0, 2, 2 * layers, 2, 16 if name == "tiny-qwen3" else 8)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_keeping_rows_in_the_last_layer_loses_nothing(name: str) -> None:
    stage = small_model(name, early_layers=3).early_stage()
    hidden, positions, rows = random(2, 7, 32), torch.arange(7).expand(2, 7), torch.arange(7)
    keep = torch.tensor([0, 5, 6])
    everything, all_keys = stage.run(hidden, positions, causal_bias(7), None, rows)
    kept, keys = stage.run(hidden, positions, causal_bias(7), None, keep)
    assert_close(everything[:, keep], kept, 1e-5, "hidden")
    for layer, (want, got) in enumerate(zip(all_keys, keys, strict=True)):
        assert_close(want[0], got[0], 1e-5, f"keys of layer {layer}")
        assert_close(want[1], got[1], 1e-5, f"values of layer {layer}")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("which", ["early", "late"])
@torch.no_grad()
def test_a_stage_in_pieces_equals_one_pass(name: str, which: str) -> None:
    model = small_model(name, early_layers=2)
    stage = model.early_stage() if which == "early" else model.late_stage()
    first = torch.randint(0, 8, (2, 9)) if which == "early" else random(2, 9, 32)
    past = no_past(name, 2)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 9, 10, 11, 12, 13]])
    bias = causal_bias(9)
    whole = stage(first, positions, bias, past, torch.arange(9))
    result, new = whole
    for start, end in ((0, 4), (4, 5), (5, 9)):
        part = stage(
            first[:, start:end],
            positions[:, start:end],
            bias[:, :, start:end, :end],
            past,
            torch.arange(end - start),
        )
        assert_close(whole[result][:, start:end], part[result], 1e-5, f"rows {start} to {end}")
        assert_close(whole[new][start:end], part[new], 1e-5, f"cache rows {start} to {end}")
        past = torch.cat((past, part[new]))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_cache_holds_keys_then_values_layer_by_layer(name: str) -> None:
    model = small_model(name, early_layers=3)
    stage, tokens, rows = model.early_stage(), torch.randint(0, 8, (2, 5)), torch.arange(5)
    _, by_layer = stage.run(stage.embedding(tokens), rows.expand(2, 5), causal_bias(5), None, rows)
    cache = stage(tokens, rows.expand(2, 5), causal_bias(5), no_past(name, 3), rows)["new_key_values"]
    assert cache.shape == (5, 2, 6, 2, 16 if name == "tiny-qwen3" else 8)
    for layer, (keys, values) in enumerate(by_layer):
        assert_close(keys, cache[:, :, 2 * layer], 1e-5, f"keys of layer {layer}")
        assert_close(values, cache[:, :, 2 * layer + 1], 1e-5, f"values of layer {layer}")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_torchs_own(groups: int) -> None:
    query, keys, values = random(2, 3, 4, 8), random(5, 2, groups, 8, seed=1), random(5, 2, groups, 8, seed=2)
    bias = torch.where(random(2, 1, 3, 5, seed=3) > 0.5, MASKED, 0.0)
    want = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.permute(1, 2, 0, 3).repeat_interleave(4 // groups, 1),
        values.permute(1, 2, 0, 3).repeat_interleave(4 // groups, 1),
        bias,
        scale=0.3,
    )
    shared = torch.cat((bias,) * (4 // groups), 2)  # [b,1,n*r,S]: all rows of the first sharing head, then the next
    assert_close(want.transpose(1, 2).flatten(2), attend(query, keys, values, shared, 4 // groups, 0.3, 0.0), 1e-5)


def test_a_row_that_sees_nothing_stays_finite() -> None:
    bias = torch.full((1, 1, 2, 3), MASKED)
    mixed = attend(random(1, 1, 2, 4), random(3, 1, 1, 4), random(3, 1, 1, 4), bias, 2, 1.0, 0.0)
    assert mixed.isfinite().all()


def test_what_is_masked_has_no_weight_at_all() -> None:
    query, keys, values = random(1, 1, 2, 4), random(3, 1, 1, 4, seed=1), random(3, 1, 1, 4, seed=2)
    bias = torch.tensor([0.0, MASKED, 0.0]).expand(1, 1, 2, 3)
    keys[1], values[1] = 100, 1e6
    seen = [0, 2]
    want = attend(query, keys[seen], values[seen], bias[..., seen], 2, 1.0, 0.0)
    assert torch.equal(want, attend(query, keys, values, bias, 2, 1.0, 0.0))


def test_rotation_turns_pairs_by_the_positions_angle() -> None:
    # A head of 4: the pair (0, 2) turns by 90 degrees, the pair (1, 3) by 180.
    cos = torch.tensor([0.0, -1.0, 0.0, -1.0]).view(1, 1, 1, 4)
    sin = torch.tensor([-1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 4)  # signed: the first of a pair loses
    head = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    assert rotate(head, (cos, sin), 2, 4).flatten().tolist() == [-3.0, -2.0, 1.0, -4.0]
    longer = torch.cat((head, torch.tensor([5.0, 6.0]).view(1, 1, 1, 2)), dim=-1)  # of which the first four are turned
    assert rotate(longer, (cos, sin), 2, 6).flatten().tolist() == [-3.0, -2.0, 1.0, -4.0, 5.0, 6.0]
