"""What generated networks are worth: the novelty audit and its pictures."""

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
from weightloom.evaluation.plots import draw_audit

__all__ = [
    "RULE",
    "VERDICTS",
    "AuditReport",
    "AuditSettings",
    "Checkpoints",
    "Novelty",
    "Usual",
    "audit",
    "draw_audit",
    "overlap",
    "verdict_of",
    "wrong_answers",
]
