"""Improve vision-language-action policies by reinforcement learning inside a learned video world model."""
