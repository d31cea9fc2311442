"""Imagination. Importing it makes it known to gymnasium; the command line, which is to answer at once, does without."""

import gymnasium

gymnasium.register(
    id="wovr/Imagined-v0",
    vector_entry_point="wovr.imagine.load:make_imagined",  # imported when an environment is made
    max_episode_steps=48,  # the tabletop's; pass another to make_vec
)
