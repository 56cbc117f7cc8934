"""One small zoo, built by every engine."""

from __future__ import annotations

RECIPE = {
    "kind": "zoo",
    "name": "engines",
    "salt": "engine-tests",
    "datasets": ("digits",),
    "architectures": ("mlp(depth=1,width=4)",),
    "size": 8,
    "channels": 1,
    "start": {"tasks": 2, "classes": 3, "steps": 4, "batch_size": 8},
    "fit": {"steps": 150, "batch_size": 8, "learning_rate": 0.02},
    "groups": ({"classes": 3, "tasks": 6},),
    "members_at_once": 1,
}
