"""Laws of the order of batches: of packed rows and of mixtures, on any number of ranks, taken up at any step."""

import json
import re
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data import IGNORED, Mixed, Packed, StepLoader, held_out_batches
from toolkit.data.mixing import once, order_of, whole_shares


def packed_rows(num_rows: int, context: int = 4, first: int = 0) -> Packed:
    """Rows that can be told apart by their first token."""
    begins = np.arange(first, first + num_rows, dtype=np.int32)[:, None] * 1000
    tokens = begins + np.arange(context, dtype=np.int32)
    return Packed(tokens_NT=tokens, targets_NT=tokens + 1, documents_NT=np.zeros_like(tokens))


def loader(rows: int = 10, *, step: int = 4, micro: int = 1, rank: int = 0, ranks: int = 1, seed: int = 0) -> StepLoader:
    return StepLoader(packed_rows(rows), sequences_per_step=step, micro_sequences=micro, rank=rank, ranks=ranks, seed=seed)


def firsts(step: list[dict[str, torch.Tensor]]) -> list[int]:
    """Numbers of the rows of one step."""
    return [number // 1000 for micro in step for number in micro["tokens_BT"][:, 0].tolist()]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_and_micro_batches_together_are_one_step(ranks, micro):
    whole = [firsts(step) for step in islice(loader(step=8, micro=8), 6)]
    parts = [islice(loader(step=8, micro=micro, rank=rank, ranks=ranks), 6) for rank in range(ranks)]
    for step, shares in zip(whole, zip(*parts, strict=True), strict=True):
        assert [number for share in shares for number in firsts(share)] == step
        assert all(len(share) == 8 // ranks // micro for share in shares)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_pass_has_every_row_once(rows, step, seed):
    steps = -(-3 * rows // step)
    stream = [number for batch in islice(loader(rows, step=step, seed=seed), steps) for number in firsts(batch)]
    for start in range(0, 3 * rows, rows):
        assert sorted(stream[start : start + rows]) == list(range(rows))


def test_passes_and_seeds_differ():
    one, two = loader(50, step=50), loader(50, step=50, seed=1)
    orders = [firsts(one.step(0)), firsts(one.step(1)), firsts(two.step(0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len(loader(10, step=4)) == 3


@given(st.integers(0, 30))
def test_resume_anywhere(position):
    steady = loader()
    before = [firsts(step) for step in islice(steady, position)]
    assert len(before) == position
    state = json.loads(json.dumps(steady.state_dict()))
    resumed = loader(ranks=2, rank=1)
    resumed.load_state_dict(state)
    for step, half in zip(islice(steady, 5), islice(resumed, 5), strict=True):
        assert firsts(step)[2:] == firsts(half)


def test_the_position_counts_steps_handed_over():
    one = loader()
    assert one.state_dict()["position"] == 0
    for number, _ in enumerate(islice(one, 3)):
        assert one.state_dict()["position"] == number + 1
    assert firsts(next(iter(one))) == firsts(one.step(3))
    assert one.state_dict()["position"] == 4


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 8}, {"rows": 11}])
def test_a_state_of_another_order_is_refused(change):
    with pytest.raises(ValueError, match="the state was saved with"):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 6, "ranks": 4}, "6 sequences a step do not divide over 4 ranks x 1 a micro-batch = 4"),
        ({"step": 4, "micro": 3}, "4 sequences a step do not divide over 1 ranks x 3 a micro-batch = 3"),
        ({"micro": 0}, "must be at least 1"),
        ({"rank": 2, "ranks": 2}, "rank=2"),
        ({"rows": 0}, "no rows"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loader(**change)


@given(st.integers(1, 13), st.integers(1, 4), st.integers(1, 4))
def test_held_out_rows_come_once_on_ranks_that_agree(rows, micro, ranks):
    batches = [list(held_out_batches(packed_rows(rows), micro, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in batches}) == 1
    seen = []
    for batch in (batch for share in batches for batch in share):
        assert batch["tokens_BT"].shape == (micro, 4)
        with_targets = (batch["targets_BT"] != IGNORED).all(1)
        assert ((batch["targets_BT"] != IGNORED).any(1) == with_targets).all()
        seen += (batch["tokens_BT"][with_targets, 0] // 1000).tolist()
    assert sorted(seen) == list(range(rows))


def test_lightning_counts_as_the_loader_does():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[tuple[list[int], int]] = []

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def training_step(self, batch: list[dict[str, torch.Tensor]], batch_idx: int) -> None:
            self.optimizers().step()
            self.seen.append((firsts(batch), batches.state_dict()["position"]))

    module, batches = Module(), loader()
    lightning.Trainer(
        accelerator="cpu",
        max_steps=8,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, batches)
    assert module.seen == [(firsts(loader().step(number)), number + 1) for number in range(8)]
    assert batches.state_dict()["position"] == 8


# ---- mixtures

some_shares = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(some_shares)
def test_no_part_is_a_row_off_its_share_after_any_number_of_rows(shares):
    order = order_of(shares)
    places = np.arange(1, len(order) + 1)
    bound = 1 - 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0
    for part, share in enumerate(shares):
        assert abs(np.cumsum(order == part) - places * share / sum(shares)).max() <= bound + 1e-9
    assert np.bincount(order, minlength=len(shares)).tolist() == shares


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_are_the_weights(weights):
    shares = whole_shares(weights)
    assert sum(shares) <= 1 << 16
    assert np.allclose(np.array(shares) / sum(shares), np.array(weights) / sum(weights), rtol=0, atol=1e-4)


def test_shares_in_small_numbers_are_exact():
    assert whole_shares((0.7, 0.2, 0.1)) == (7, 2, 1)
    assert whole_shares((1 / 3, 2 / 3)) == (1, 2)
    assert whole_shares((300, 100)) == (3, 1)
    with pytest.raises(ValueError, match="weight 1e-06 is below a 65,536th of the sum"):
        whole_shares((1.0, 1e-6))


def mixture_loader(shares: tuple[int, ...] = (3, 1), **changes) -> StepLoader:
    parts = tuple(packed_rows(7 + 4 * number, first=100 * number) for number in range(len(shares)))
    options = {"sequences_per_step": 4, "micro_sequences": 1, "rank": 0, "ranks": 1, "seed": 0, **changes}
    return StepLoader(Mixed(parts=parts, shares=shares), **options)


@settings(max_examples=20)
@given(some_shares.map(tuple), st.integers(0, 20))
def test_a_mixture_keeps_its_proportions_its_ranks_and_its_place(shares, position):
    steady = mixture_loader(shares)
    steps = [firsts(step) for step in islice(steady, 30)]
    rows = np.array(steps).ravel()
    for part, share in enumerate(shares):
        seen = np.cumsum(rows // 100 == part)
        assert abs(seen - np.arange(1, len(rows) + 1) * share / sum(shares)).max() < 1
        mine = rows[rows // 100 == part] - 100 * part
        size = 7 + 4 * part
        for first in range(0, len(mine) // size * size, size):  # each part has passes of its own
            assert sorted(mine[first : first + size]) == list(range(size))
    halves = [mixture_loader(shares, rank=rank, ranks=2) for rank in range(2)]
    state = json.loads(json.dumps({**steady.state_dict(), "position": position}))
    for half in halves:
        half.load_state_dict(state)
    for step, parts in zip(steps[position:], zip(*halves)):
        assert [number for part in parts for number in firsts(part)] == step


def test_a_pass_over_a_mixture_lasts_until_every_part_was_read():
    assert len(mixture_loader((3, 1))) == 11  # 11 rows of the second part, one row in four
    assert len(mixture_loader((1, 9))) == 18  # 7 rows of the first, one row in ten
    state = mixture_loader((3, 1)).state_dict()
    with pytest.raises(ValueError, match="the state was saved with rows="):
        mixture_loader((1, 3)).load_state_dict(state)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5))
def test_held_out_rows_of_all_parts_come_once_in_proportion(lengths, share):
    shares = (share, *(1 for _ in lengths[1:]))
    parts, rows = once(lengths, shares)
    assert sorted(zip(parts.tolist(), rows.tolist())) == [(part, row) for part, n in enumerate(lengths) for row in range(n)]
    begun = min(length // each for length, each in zip(lengths, shares)) * sum(shares)
    assert parts[:begun].tolist() == np.resize(order_of(shares), begun).tolist()
    mixed = Mixed(parts=tuple(packed_rows(n, first=100 * part) for part, n in enumerate(lengths)), shares=shares)
    found = [row // 1000 for batch in held_out_batches(mixed, 1) for row in batch["tokens_BT"][:, 0].tolist()]
    assert found == [100 * part + row for part, row in zip(parts, rows)]
