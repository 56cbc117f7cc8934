"""What generated networks are worth: the novelty audit, the leaderboard, the choice of an architecture."""

from weightloom.evaluation.atlas import Atlas, chart
from weightloom.evaluation.audit import AuditReport, AuditSettings, audit
from weightloom.evaluation.candidates import Candidate, candidates_of
from weightloom.evaluation.ground import GROUPS, Ground, Trial
from weightloom.evaluation.halving import select
from weightloom.evaluation.leaderboard import Leaderboard, LeaderboardSettings, run_leaderboard
from weightloom.evaluation.novelty import (
    RULE,
    VERDICTS,
    Checkpoints,
    Novelty,
    Usual,
    overlap,
    verdict_of,
    wrong_answers,
)
from weightloom.evaluation.ranking import leaderboard_json, leaderboard_markdown, leaderboard_table
from weightloom.evaluation.selection import Selection, SelectionSettings, parse_budget

__all__ = [
    "GROUPS",
    "RULE",
    "VERDICTS",
    "Atlas",
    "AuditReport",
    "AuditSettings",
    "Candidate",
    "Checkpoints",
    "Ground",
    "Leaderboard",
    "LeaderboardSettings",
    "Novelty",
    "Selection",
    "SelectionSettings",
    "Trial",
    "Usual",
    "audit",
    "candidates_of",
    "chart",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "overlap",
    "parse_budget",
    "run_leaderboard",
    "select",
    "verdict_of",
    "wrong_answers",
]
