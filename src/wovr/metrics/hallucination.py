"""Hallucination: where a rollout in imagination and the same actions in truth disagree about success.

Both worlds replay one sequence of actions from one start. The number to watch is the false-success rate: the
reward that a policy can earn by failing, which is what reinforcement learning then optimises.

Legend: B rollouts, T frames that an action produced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wovr.metrics.success import Rate
from wovr.metrics.video import by_depth


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of rollouts by imagined and true success."""

    both_succeed: int
    false_success: int
    """Imagined success, true failure."""
    false_failure: int
    """Imagined failure, true success."""
    both_fail: int

    @classmethod
    def of(cls, imagined_B: Tensor, true_B: Tensor) -> Confusion:
        """Count two boolean tensors (B,)."""
        assert imagined_B.dtype == true_B.dtype == torch.bool and imagined_B.shape == true_B.shape
        return cls(
            both_succeed=int((imagined_B & true_B).sum()),
            false_success=int((imagined_B & ~true_B).sum()),
            false_failure=int((~imagined_B & true_B).sum()),
            both_fail=int((~imagined_B & ~true_B).sum()),
        )

    @property
    def n(self) -> int:
        """Rollouts."""
        return self.both_succeed + self.false_success + self.false_failure + self.both_fail

    @property
    def agreement(self) -> Rate:
        """Same success on both sides."""
        return Rate(self.both_succeed + self.both_fail, self.n)

    @property
    def false_success_rate(self) -> Rate:
        """P(imagined success | true failure)."""
        return Rate(self.false_success, self.false_success + self.both_fail)

    @property
    def false_success_share(self) -> Rate:
        """P(true failure | imagined success): the part of the imagined reward that is not real."""
        return Rate(self.false_success, self.false_success + self.both_succeed)

    @property
    def false_failure_rate(self) -> Rate:
        """P(imagined failure | true success)."""
        return Rate(self.false_failure, self.false_failure + self.both_succeed)

    def to_dict(self) -> dict[str, object]:
        """JSON form: the counts, and the rates with their Wilson intervals."""
        return {
            "counts": {
                "both_succeed": self.both_succeed,
                "false_success": self.false_success,
                "false_failure": self.false_failure,
                "both_fail": self.both_fail,
            },
            "agreement": self.agreement.to_dict(),
            "false_success_rate": self.false_success_rate.to_dict(),
            "false_success_share": self.false_success_share.to_dict(),
            "false_failure_rate": self.false_failure_rate.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class StartReport:
    """Hallucination of rollouts that began in one kind of start state."""

    confusion: Confusion
    false_success_by_depth: tuple[Rate, ...]
    """Entry d: of the successes that imagination claims in chunk d, the share that truth denies altogether."""
    delay: float
    """Median of imagined minus true first success in env steps, where both succeed; NaN where none does."""
    psnr_by_depth: tuple[float, ...]
    """dB, mean of each chunk; NaN where no rollout is that long."""
    gap_by_depth: tuple[float, ...]
    """How far the success probability of an imagined frame is from that of the true one, mean of each chunk."""
    psnr_after_success: float
    """dB, mean over the frames after true success, which the post-success mask keeps from training; NaN without any."""
    gap_after_success: float
    """The same of the success probability."""

    def to_dict(self) -> dict[str, object]:
        """JSON form, with null for NaN."""
        return {
            **self.confusion.to_dict(),
            "false_success_by_depth": [rate.to_dict() for rate in self.false_success_by_depth],
            "delay": _number(self.delay),
            "psnr_by_depth": [_number(value) for value in self.psnr_by_depth],
            "gap_by_depth": [_number(value) for value in self.gap_by_depth],
            "psnr_after_success": _number(self.psnr_after_success),
            "gap_after_success": _number(self.gap_after_success),
        }


@dataclass(frozen=True, slots=True)
class HallucinationReport:
    """All rollouts together, and those of each kind of start."""

    overall: StartReport
    by_start: dict[str, StartReport]

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        starts = {kind: report.to_dict() for kind, report in self.by_start.items()}
        return {"overall": self.overall.to_dict(), "by_start": starts}


def measure_hallucination(
    imagined_first_B: Tensor,
    true_first_B: Tensor,
    psnr_BT: Tensor,
    gap_BT: Tensor,
    starts: Sequence[str],
    chunk_length: int,
) -> HallucinationReport:
    """Compare paired rollouts.

    Args:
        imagined_first_B: int64, index of first success in imagination, T where there is none
            (`wovr.metrics.success.first_success`). Counted from the start of the rollout, also from a keyframe.
        true_first_B: the same in the true simulator.
        psnr_BT: PSNR of each imagined frame in dB; NaN where a rollout is shorter than T.
        gap_BT: distance of its success probability from that of the true frame; NaN likewise.
        starts: kind of start of each rollout, for example `first_frame` or `keyframe`.
        chunk_length: env steps per chunk, the unit of depth.
    """
    assert imagined_first_B.shape == true_first_B.shape == (len(starts),) == psnr_BT.shape[:1]
    assert psnr_BT.shape == gap_BT.shape

    def report(chosen: Tensor) -> StartReport:
        firsts = imagined_first_B[chosen], true_first_B[chosen]
        return _start_report(*firsts, psnr_BT[chosen], gap_BT[chosen], chunk_length)

    by_start = {kind: report(torch.tensor([start == kind for start in starts])) for kind in sorted(set(starts))}
    return HallucinationReport(overall=report(torch.ones(len(starts), dtype=torch.bool)), by_start=by_start)


def _start_report(
    imagined_first_B: Tensor, true_first_B: Tensor, psnr_BT: Tensor, gap_BT: Tensor, chunk_length: int
) -> StartReport:
    T = psnr_BT.shape[1]
    after_BT = torch.arange(T) > true_first_B[:, None]
    imagined_B, true_B = imagined_first_B < T, true_first_B < T
    depths = range(math.ceil(T / chunk_length))
    denied_by_depth = [~true_B[imagined_B & (imagined_first_B // chunk_length == depth)] for depth in depths]
    delay_b = (imagined_first_B - true_first_B)[imagined_B & true_B].double()
    return StartReport(
        confusion=Confusion.of(imagined_B, true_B),
        false_success_by_depth=tuple(Rate.of(denied) for denied in denied_by_depth),
        delay=delay_b.quantile(0.5).item() if len(delay_b) else math.nan,
        psnr_by_depth=tuple(by_depth(psnr_BT, chunk_length)),
        gap_by_depth=tuple(by_depth(gap_BT, chunk_length)),
        psnr_after_success=psnr_BT[after_BT].nanmean().item(),
        gap_after_success=gap_BT[after_BT].nanmean().item(),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
