"""What generated networks are worth: the novelty audit, the choice of an architecture, and their pictures."""

from weightloom.evaluation.audit import AuditReport, AuditSettings, audit
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
from weightloom.evaluation.plots import draw_audit, draw_selection
from weightloom.evaluation.selection import (
    Candidate,
    Selection,
    SelectionSettings,
    candidates_of,
    parse_budget,
    select,
)

__all__ = [
    "RULE",
    "VERDICTS",
    "AuditReport",
    "AuditSettings",
    "Candidate",
    "Checkpoints",
    "Novelty",
    "Selection",
    "SelectionSettings",
    "Usual",
    "audit",
    "candidates_of",
    "draw_audit",
    "draw_selection",
    "overlap",
    "parse_budget",
    "select",
    "verdict_of",
    "wrong_answers",
]
