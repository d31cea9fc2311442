"""Choose the success threshold of a world model's reward head, as the classifier's is chosen: on held-out episodes.

Their true frames are judged as imagined ones are, from features at the sigma of the last Euler step. What differs in
imagination is what the network draws, and `wovr.stages.compare_reward` measures that.
"""

from __future__ import annotations

import numpy as np

from wovr.core.types import Episode
from wovr.dit.model import ActionDiT
from wovr.imagine.load import StoredCodec
from wovr.imagine.true_frames import judge_true
from wovr.imagine.world_model import WorldModel, for_inference
from wovr.metrics.success import first_success
from wovr.reward.calibrate import calibrate
from wovr.reward.joint import RewardHead
from wovr.stages.experiment import Workplace


def calibrate_head(
    place: Workplace, dit: ActionDiT, codec: StoredCodec, held: list[tuple[str, Episode]]
) -> dict[str, float]:
    """Set threshold and hold of the head of `dit`; returns them and what they get wrong.

    Episodes shorter than a chunk are left out; where no other is held out, the head stays as it is.
    """
    config, head = place.experiment, dit.reward_head
    assert isinstance(head, RewardHead)
    model = WorldModel(
        codec.codec, for_inference(dit).to(codec.codec.device), config.world_model.context, config.world_model.flow
    )
    judge = for_inference(head, "fp32").to(codec.codec.device)
    long = [(name, episode) for name, episode in held if len(episode) >= model.chunk_length]
    if not long:
        return {}
    chosen = calibrate(
        [judge_true(model, judge, episode, name, 0, len(episode), seed=config.seed) for name, episode in long],
        np.array([episode.success for _, episode in long]),
        config.reward.calibration,
        first_success,
    )
    head.calibrated(chosen.threshold, chosen.hold)
    return {
        "reward_threshold": chosen.threshold,
        "reward_agreement": chosen.agreement,
        "reward_false_successes": chosen.false_successes,
        "reward_failed": chosen.failed,
        "reward_missed_successes": chosen.missed_successes,
        "reward_succeeded": chosen.succeeded,
    }
