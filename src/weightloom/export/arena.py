"""Where each value of a list of steps lies in one array, so that what is not read any more is written over.

Knows steps; no language.
"""

from __future__ import annotations

from weightloom.export.steps import Steps, Value


def in_place(steps: Steps) -> None:
    """Let steps that can write over what they read, where nothing reads it afterwards."""
    last = _last_reads(steps)
    for number, step in enumerate(steps.steps):
        first = step.reads[0] if step.reads else None
        if not step.in_place or not isinstance(first, Value) or step.out.memory is not None:
            continue
        source = first.root
        others = {read.root for read in step.reads[1:] if isinstance(read, Value)}
        fits = source.size == step.out.size and source not in (steps.image.root, *others)
        if fits and last[source] == number:
            step.out.memory = source
            last[source] = last.get(step.out, number)


def placed(steps: Steps) -> tuple[dict[Value, int], int]:
    """Offsets in floats of every value that has memory of its own, and how many floats there are in all.

    The picture and the logits lie with the caller, so they have none. Greedy: the largest value first, each
    at the lowest place where it meets no other that lives at the same time.
    """
    last = _last_reads(steps)
    born: dict[Value, int] = {}
    for number, step in enumerate(steps.steps):
        born.setdefault(step.out.root, number)
    own = [value for value in born if value not in (steps.image.root, outside(steps))]
    offsets: dict[Value, int] = {}
    for value in sorted(own, key=lambda value: (-value.size, born[value])):
        together = [
            (offsets[other], offsets[other] + other.size)
            for other in offsets
            if born[other] <= last.get(value, born[value]) and born[value] <= last.get(other, born[other])
        ]
        at = 0
        for start, end in sorted(together):
            if start - at >= value.size:
                break
            at = max(at, end)
        offsets[value] = at
    return offsets, max((at + value.size for value, at in offsets.items()), default=0)


def outside(steps: Steps) -> Value | None:
    """The value that lies in the caller's logits: the answer, where it has exactly their size."""
    root = steps.logits.root
    return root if root.size == steps.logits.size and root is not steps.image.root else None


def _last_reads(steps: Steps) -> dict[Value, int]:
    """The last step that reads or writes each memory; what is answered lives to the end."""
    last: dict[Value, int] = {}
    for number, step in enumerate(steps.steps):
        last[step.out.root] = number
        for read in step.reads:
            if isinstance(read, Value):
                last[read.root] = number
    last[steps.logits.root] = len(steps.steps)
    return last
