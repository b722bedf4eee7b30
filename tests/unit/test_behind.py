"""Suffixes behind shared prefixes, or behind copies of them, against torch's attention over each whole sequence."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayrec.batch import SplitPrompt
from rayrec.models.attention import _fused
from rayrec.models.behind import Behind, attend_behind, filled, lay_out
from rayrec.models.copies import Attend, attend_copies, lay_copies
from rayrec.models.loading import load_backbone
from rayrec.models.products import products

HEADS, GROUPS, WIDTH = 6, 3, 4
OF = [1, 0, 1, 2, 0]
SUFFIXES = [2, 5, 1, 3, 4]


class GroupedAttention(nn.Module):
    """What transformers' kernel asks of a layer."""

    num_key_value_groups = HEADS // GROUPS
    is_causal = True


def prompt(prefixes: list[int]) -> SplitPrompt:
    return SplitPrompt(
        prefix_UP=torch.zeros(len(prefixes), max(prefixes), dtype=torch.int64),
        prefix_length_U=torch.tensor(prefixes),
        prefix_of_B=torch.tensor(OF),
        suffix_BS=torch.zeros(len(OF), max(SUFFIXES), dtype=torch.int64),
        suffix_length_B=torch.tensor(SUFFIXES),
    )


@pytest.mark.parametrize(
    "attend", [None, products, partial(_fused, GroupedAttention())], ids=["shared", "copies", "copies, fused"]
)
@pytest.mark.parametrize("prefixes", [[7, 2, 4], [3, 3, 3]], ids=["padded", "of one length"])
def test_values_and_gradients_are_those_of_whole_sequences(prefixes: list[int], attend: Attend | None) -> None:
    torch.manual_seed(0)
    key_UKPD, value_UKPD = torch.randn(2, len(prefixes), GROUPS, max(prefixes), WIDTH)
    count = sum(SUFFIXES)
    query_HND = torch.randn(HEADS, count, WIDTH, requires_grad=True)
    key_KND, value_KND = (torch.randn(GROUPS, count, WIDTH, requires_grad=True) for _ in range(2))
    given = prompt(prefixes)
    states = query_HND * 0.7, key_KND, value_KND
    lay = lay_copies if attend else lay_out
    layout = lay(given, [key_UKPD], [value_UKPD])
    if isinstance(layout, Behind):
        found_NHD = attend_behind(layout, 0, *states)
    else:
        assert attend is not None
        found_NHD = attend_copies(layout, 0, *states, attend=attend)

    expected: list[Tensor] = []
    position: list[int] = []
    start = 0
    for row, length in enumerate(SUFFIXES):
        before, own = prefixes[OF[row]], slice(start, start + length)
        keys = torch.cat([key_UKPD[OF[row], :, :before], key_KND[:, own]], 1)
        values = torch.cat([value_UKPD[OF[row], :, :before], value_KND[:, own]], 1)
        seen = torch.ones(length, before + length, dtype=torch.bool).tril(before)
        options = {"attn_mask": seen, "scale": 0.7, "enable_gqa": True}
        expected.append(F.scaled_dot_product_attention(query_HND[:, own], keys, values, **options).transpose(0, 1))
        position += range(before, before + length)
        start += length
    expected_NHD = torch.cat(expected)
    torch.testing.assert_close(found_NHD, expected_NHD, atol=1e-6, rtol=1e-5)
    if isinstance(layout, Behind):
        with torch.no_grad():  # another kernel
            still_NHD = attend_behind(layout, 0, *states)
        torch.testing.assert_close(still_NHD, expected_NHD, atol=1e-6, rtol=1e-5)
    assert layout.own.position_N.tolist() == position
    assert layout.own.last_B.tolist() == [1, 7 - 1, 8 - 1, 11 - 1, 15 - 1] and int(filled(given).sum()) == count

    weight = torch.randn_like(found_NHD)
    learned = [query_HND, key_KND, value_KND]
    ours, theirs = (torch.autograd.grad((x * weight).sum(), learned) for x in (found_NHD, expected_NHD))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", [products, partial(_fused, GroupedAttention())], ids=["products", "fused"])
@pytest.mark.parametrize("of", [OF, [0] * len(OF)], ids=["several prefixes", "one for all"])
@torch.no_grad()
def test_copies_in_bf16_see_no_empty_key(of: list[int], attend: Attend) -> None:
    """Between a prefix and a suffix stand keys of zeros up to whole pieces: seen, they would have the highest score."""
    torch.manual_seed(0)
    prefixes = [7, 2, 4][: max(of) + 1]
    given = replace(prompt(prefixes), prefix_of_B=torch.tensor(of))
    before = torch.rand(2, len(prefixes), GROUPS, max(prefixes), WIDTH)
    own, query_HND = torch.rand(2, GROUPS, sum(SUFFIXES), WIDTH), -20 * torch.ones(HEADS, sum(SUFFIXES), WIDTH)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        key_UKPD, value_UKPD, key_KND, value_KND = (x.bfloat16().to(dtype) for x in (*before, *own))
        copies = lay_copies(given, [key_UKPD], [value_UKPD])
        assert copies.empty == (0 if dtype is torch.float32 else 32 - max(prefixes) - max(SUFFIXES))
        found[dtype] = attend_copies(copies, 0, query_HND.to(dtype), key_KND, value_KND, attend=attend).float()
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("learns", [True, False])
def test_scores_far_apart_stay_finite(learns: bool) -> None:
    """Neither part's exponents overflow, whichever holds the largest score."""
    key_UKPD = torch.full((3, 1, 3, WIDTH), 500.0)
    behind = lay_out(prompt([3, 3, 3]), [key_UKPD], [torch.ones_like(key_UKPD)])
    for sign in (1.0, -1.0):
        query_HND = torch.full((1, sum(SUFFIXES), WIDTH), sign)
        own = torch.zeros(1, sum(SUFFIXES), WIDTH)
        with torch.set_grad_enabled(learns):
            mixed = attend_behind(behind, 0, query_HND, own, own)
        torch.testing.assert_close(mixed, torch.full_like(mixed, 1.0 if sign > 0 else 0.0))


def test_a_backbone_whose_attention_cannot_be_replaced_packs_its_prompts(tiny: Path) -> None:
    backbone = load_backbone(tiny, answers=(1, 2), yes_only=False, dtype=torch.float32)
    given = prompt([7, 2, 4])
    torch.manual_seed(0)
    prefix_UPH, suffix_BSH = torch.randn(3, 7, backbone.hidden), torch.randn(5, 5, backbone.hidden)
    scores = []
    for implementation in ("eager", "sdpa"):
        backbone.decoder.set_attn_implementation(implementation)  # type: ignore[operator]
        backbone.replace_attention(products=False)
        assert backbone.parts_suffixes == (implementation == "sdpa")
        scores.append(backbone.answer_split(prefix_UPH, suffix_BSH, given, prefix_learns=False))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most", [0, 2**24], ids=["fused", "products"])
@torch.no_grad()
def test_in_bf16_both_ways_round_alike(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrec.models.products._READ_SCORES", most)
    torch.manual_seed(0)
    prefixes, count = [7, 2, 4], sum(SUFFIXES)
    states = [torch.randn(3, GROUPS, 7, WIDTH), torch.randn(3, GROUPS, 7, WIDTH), torch.randn(HEADS, count, WIDTH)]
    states += [torch.randn(GROUPS, count, WIDTH) for _ in range(2)]
    found, expected = (
        attend_behind(lay_out(prompt(prefixes), [key], [value]), 0, *own)
        for key, value, *own in ([state.to(dtype) for state in states] for dtype in (torch.bfloat16, torch.float32))
    )
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
