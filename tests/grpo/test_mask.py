"""T_valid and the rows of an update."""

import torch

from wovr.grpo.mask import chunk_rows, valid_steps


def test_valid_steps_include_first_success():
    assert valid_steps(torch.tensor([0, 5, 47, 48]), 48).tolist() == [1, 6, 48, 48]
    assert valid_steps(torch.tensor([5, 5]), torch.tensor([4, 8])).tolist() == [4, 6]


def test_without_the_mask_every_step_is_valid():
    first_N = torch.tensor([0, 5, 8])
    assert valid_steps(first_N, 8, mask_after_success=False).tolist() == [8, 8, 8]
    assert valid_steps(first_N, torch.tensor([4, 6, 8]), mask_after_success=False).tolist() == [4, 6, 8]


def test_rows_cover_each_valid_step_once_and_no_other():
    H = 4
    valid_N = torch.tensor([1, 4, 5, 12, 9])
    keep_N = torch.tensor([True, True, True, False, True])
    rows = chunk_rows(valid_N, keep_N, H)
    covered = [
        (rows.trajectory_B[b].item(), rows.chunk_B[b].item() * H + h)
        for b in range(len(rows))
        for h in range(H)
        if rows.mask_BH[b, h]
    ]
    assert covered == [(i, t) for i in (0, 1, 2, 4) for t in range(int(valid_N[i]))]
    assert rows.mask_BH.any(dim=1).all()


def test_weights_make_every_kept_trajectory_count_the_same():
    valid_N = torch.tensor([1, 4, 5, 12, 9])
    keep_N = torch.tensor([True, True, True, False, True])
    rows = chunk_rows(valid_N, keep_N, 4)
    share_B = rows.weight_B * rows.mask_BH.sum(dim=1) / len(rows)
    per_trajectory = torch.zeros(5).index_add(0, rows.trajectory_B, share_B)
    torch.testing.assert_close(per_trajectory, torch.tensor([0.25, 0.25, 0.25, 0.0, 0.25]))


def test_nothing_kept_gives_no_rows():
    rows = chunk_rows(torch.tensor([3, 4]), torch.tensor([False, False]), 4)
    assert len(rows) == 0
    assert rows.mask_BH.shape == (0, 4)
