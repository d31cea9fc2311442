"""Improve vision-language-action policies by reinforcement learning inside a learned video world model."""

import gymnasium

gymnasium.register(
    id="wovr/Imagined-v0",
    vector_entry_point="wovr.imagine.load:make_imagined",  # imported when an environment is made
    max_episode_steps=48,  # the tabletop's; pass another to make_vec
)
