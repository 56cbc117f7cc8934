"""The pictures of the library in one place; those of single commands are in ``cli/plots.py``.

They need matplotlib.
"""

from weightloom.evaluation.plots import draw_atlas, draw_audit, draw_leaderboard, draw_selection
from weightloom.nn.hyper_plots import draw_scales

__all__ = ["draw_atlas", "draw_audit", "draw_leaderboard", "draw_scales", "draw_selection"]
