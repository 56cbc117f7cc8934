"""How an architecture is called in a sentence."""

from __future__ import annotations

from weightloom.architectures import ArchitectureSpec, parse_architecture


def short_text(architecture: str | ArchitectureSpec) -> str:
    """An architecture as people tell it: its size and what is unusual, without classes and input.

    Example:
        >>> short_text("cnn(norm=group,classes=10,input=3x16x16)")
        'cnn(depth=3,width=16,norm=group)'
    """
    spec = parse_architecture(architecture) if isinstance(architecture, str) else architecture
    _, _, inside = spec.full_text().rstrip(")").partition("(")
    defaults = {option.name: option.default for option in spec.options()}
    kept = []
    for part in filter(None, inside.split(",")):
        name, _, value = part.partition("=")
        if name not in ("classes", "input") and (name in ("depth", "width") or value != defaults[name]):
            kept.append(part)
    return f"{spec.family}({','.join(kept)})" if kept else spec.family
