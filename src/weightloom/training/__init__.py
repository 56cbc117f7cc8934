"""The one loop that trains tokenizers and generators, and what each of them minimises."""

from weightloom.training.loop import LoopSettings, Progress, run_loop

__all__ = ["LoopSettings", "Progress", "run_loop"]
