"""Copies of a caller's module, which leave it, its hooks and all that it keeps as they are.

Everything of ours that runs or changes a module of somebody else does so on such a copy. What
``copy.deepcopy`` alone cannot do is done here: tensors that are no leaves of a gradient's graph (features of
the last forward pass in a dict, weights that a hook has made), modules that ``torch.compile`` wraps, hooks
that cannot be copied. Knows nothing of what a copy is for.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Set
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.overrides import TorchFunctionMode

from weightloom.errors import InputError

TensorOf = Callable[[str, Tensor, bool], Tensor | None]
"""(name, old, is_buffer) to the tensor that takes its place; None for a copy."""

_FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_HOOKS = (
    *_FORWARD_HOOKS, "_backward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_GET_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_COMPILED = "_orig_mod"
"""What torch.compile calls the module that it wraps; the word then stands in every name of a state dict."""


def copy_module(
    module: nn.Module,
    tensors: TensorOf | None = None,
    *,
    kept: Callable[[Tensor], Tensor] | None = None,
    running: list[str] | None = None,
) -> nn.Module:
    """A copy of ``module`` that shares nothing with it.

    Parts that ``torch.compile`` has wrapped or compiled are plain in the copy. A tensor that the module holds
    under several names stays shared. Hooks are copied with what they are bound to. Plain functions, such as
    hooks and a ``forward`` that was put in, refer to the copies of the modules that they refer to; whatever
    else they refer to, and hooks that cannot be copied, are the caller's own objects.

    Args:
        module: any module; it is not changed, and nothing of it is run.
        tensors: the parameter or buffer that takes the place of an old one, by its :func:`plain_name`.
        kept: the same for tensors that are kept elsewhere: in attributes, lists, dicts and objects. By
            default these are copied without their history.
        running: for a copy that is called by us alone. It runs no hooks, global ones included, but those of
            torch that make weights (weight norm, pruning); and while it is called, the list holds the names
            of the layers that are at work, the innermost last, also when one of them has failed.

    Raises:
        InputError: something that the module keeps cannot be copied (the sentence names it), or a part is
            TorchScript and ``tensors`` are given.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.features = {"last": net(torch.zeros(1, 2))}
        >>> twin = copy_module(net)
        >>> twin.features["last"].grad_fn is None, twin.weight is net.weight
        (True, False)
    """
    layers = dict(module.named_modules())
    memo: dict[int, Any] = {}
    alive: list[Any] = []  # ids name objects only while these live
    if tensors is not None:
        for path, layer in layers.items():
            if isinstance(layer, torch.jit.ScriptModule) and any(True for _ in _tensors_of(layer)):
                raise InputError(
                    f"{_called(path, layer)} is TorchScript, whose weights and operations stay inside; hand "
                    "over the module that it was made from"
                )
        for is_buffer, named in ((False, module.named_parameters()), (True, module.named_buffers())):
            for name, old in named:
                new = tensors(plain_name(name), old, is_buffer)
                if new is not None:
                    memo[id(old)] = new if is_buffer else _parameter(old, new)
                    alive.append(old)
    registered = dict(memo)
    everywhere, functions = _all_layers(module)
    memo |= {id(function): function for function in functions}  # they cannot be copied, and keep nothing
    for layer in everywhere:
        for name in _HOOKS:
            if vars(layer).get(name):
                memo[id(vars(layer)[name])] = OrderedDict()
    try:
        # What torch says of its own classes while they are copied is nothing to the caller.
        with _Copying(kept), warnings.catch_warnings(action="ignore"):
            for layer in reversed(everywhere):  # a wrapper within a wrapper first
                if _COMPILED in layer._modules:
                    memo[id(layer)] = copy.deepcopy(layer._modules[_COMPILED], memo)
            made = copy.deepcopy(module, memo)
            _rebind(everywhere, memo)
            _copy_hooks(everywhere, memo, every=running is None)
    except Exception as error:
        raise InputError(_why_not(layers, kept, error)) from None
    assert isinstance(made, nn.Module)
    _check_copy(made, layers, registered)
    if running is not None:
        names = {id(layer): name for name, layer in made.named_modules()}
        for new in (memo.get(id(layer)) for layer in everywhere):
            if isinstance(new, nn.Module) and not isinstance(new, torch.jit.ScriptModule):
                # Where torch's ``Module.compile`` puts its function; ``Module.__call__`` hands over to it.
                new._compiled_call_impl = _Call(names.get(id(new), ""), new, running)
    return made


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _all_layers(module: nn.Module) -> tuple[list[nn.Module], list[torch.jit.ScriptFunction]]:
    """The module, its layers, and those that it only keeps in lists, dicts and objects, each once; and the
    functions of TorchScript among these.
    """
    layers: dict[int, nn.Module] = {}
    functions: list[torch.jit.ScriptFunction] = []
    seen: dict[int, Any] = {}  # layers often keep one and the same object, such as a config
    waiting = [module]
    while waiting:
        for layer in waiting.pop().modules():
            if id(layer) not in layers:
                layers[id(layer)] = layer
                kept = [value for _, value in _own_attributes(layer)]
                for one in objects_in(kept, (nn.Module, torch.jit.ScriptFunction), seen):
                    (waiting if isinstance(one, nn.Module) else functions).append(one)
    return list(layers.values()), functions


def objects_in(value: Any, kinds: type | tuple[type, ...], seen: dict[int, Any] | None = None) -> list[Any]:
    """Objects of ``kinds`` in nested lists, tuples, sets, dicts and the fields of other objects, in order.

    ``seen`` holds what has been looked into, by identity, for several calls that look into nothing twice.
    """
    objects: list[Any] = []
    seen = {} if seen is None else seen
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, kinds):
            objects.append(one)
        elif one is not None and id(one) not in seen and not isinstance(one, _WITHOUT_PARTS):
            seen[id(one)] = one
            stack += reversed(_parts(one))
    return objects


_WITHOUT_PARTS = (
    str, bytes, int, float, complex, type, Tensor, nn.Module, FunctionType, BuiltinFunctionType, MethodType,
    ModuleType,
)  # fmt: skip


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, Set, deque)):
        return list(value)
    slots = [name for kind in type(value).__mro__ for name in _as_names(vars(kind).get("__slots__", ()))]
    own = [getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)]
    return own + list(getattr(value, "__dict__", {}).values())


def _as_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def plain_name(name: str) -> str:
    """The name of a tensor or a layer without the words that ``torch.compile`` puts into it.

    Example:
        >>> plain_name("_orig_mod.trunk._orig_mod.0.weight")
        'trunk.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` has wrapped the module or a part of it."""
    return any(_COMPILED in layer._modules for layer in module.modules())


def hooked_layers(module: nn.Module) -> list[str]:
    """Names of the layers with hooks in their forward pass that are not torch's own; '' is the module."""
    return [
        plain_name(path)
        for path, layer in module.named_modules()
        if any(not _is_torchs(hook) for name in _FORWARD_HOOKS for hook in vars(layer).get(name, {}).values())
    ]


def made_from(layer: nn.Module) -> list[str]:
    """Parameters of a layer that an older hook of torch's kind keeps to make another tensor of them.

    They are called NAME_orig, or NAME_g and NAME_v, beside the NAME that is made.

    Example:
        >>> import torch.nn.utils.prune as prune
        >>> made_from(prune.identity(nn.Linear(2, 2), "weight")), made_from(nn.Linear(2, 2))
        (['weight_orig'], [])
    """
    own = [name for name, _ in layer.named_parameters(recurse=False)]
    parts = ((name, *name.rpartition("_")[::2]) for name in own)
    return [
        name
        for name, base, ending in parts
        if ending in ("orig", "g", "v") and isinstance(vars(layer).get(base), Tensor)
    ]


class _Call:
    """What ``Module.__call__`` does for hooks of the forward pass, without those that are global."""

    def __init__(self, name: str, layer: nn.Module, running: list[str]) -> None:
        self.name, self.layer, self.running = name, layer, running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        self.running.append(self.name)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if key in layer._forward_pre_hooks_with_kwargs:
                args, kwargs = hook(layer, args, kwargs) or (args, kwargs)
            else:
                changed = hook(layer, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        result = layer.forward(*args, **kwargs)
        for key, hook in list(layer._forward_hooks.items()):
            given = (args, kwargs) if key in layer._forward_hooks_with_kwargs else (args,)
            changed = hook(layer, *given, result)
            result = result if changed is None else changed
        self.running.pop()
        return result


class _Copying(TorchFunctionMode):
    """While it is active, ``copy.deepcopy`` takes any tensor: what comes of it has no history."""

    def __init__(self, kept: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            old, memo = args
            if id(old) not in memo:
                memo[id(old)] = self.copy(old, memo)
                memo.setdefault(id(memo), []).append(old)  # as copy.deepcopy keeps alive what it has copied
            return memo[id(old)]
        # A parameter in a list or dict copies itself by way of its data.
        if self.kept is not None and func == _GET_DATA and not is_lazy(args[0]):
            return self.kept(args[0].detach())
        return func(*args, **(kwargs or {}))

    def copy(self, old: Tensor, memo: dict[int, Any]) -> Tensor:
        if is_lazy(old):
            return UninitializedBuffer(old.requires_grad, old.device, old.dtype)  # type: ignore[arg-type]
        if self.kept is not None:
            return self.kept(old.detach())
        if old.is_leaf:
            return Tensor.__deepcopy__(old, memo)  # views of one memory stay views of one
        bare = old.detach()
        memo.setdefault(id(memo), []).append(bare)
        return Tensor.__deepcopy__(bare, memo)


def _parameter(old: Tensor, new: Tensor) -> nn.Parameter:
    kind = type(old)
    if kind is not nn.Parameter and issubclass(kind, nn.Parameter) and not is_lazy(old):
        try:
            return kind(new, requires_grad=old.requires_grad)
        except TypeError:  # a class whose constructor wants more
            pass
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _is_torchs(hook: Any) -> bool:
    """Whether a hook is one of torch's own functions or classes; those that make weights are."""
    origin = getattr(hook, "__module__", None) or type(hook).__module__
    return str(origin).startswith("torch.")


def _copy_hooks(layers: Any, memo: dict[int, Any], *, every: bool) -> None:
    """Fill the hooks of the copies, which are still empty."""
    for layer in layers:
        new = memo.get(id(layer))
        if not isinstance(new, nn.Module) or isinstance(new, torch.fx.GraphModule):
            continue  # copies of graph modules have the hooks that torch gives them
        for name in _HOOKS if every else _FORWARD_HOOKS:
            for key, hook in (vars(layer).get(name) or {}).items():
                if every or _is_torchs(hook):
                    vars(new)[name][key] = _copied_hook(hook, memo)


def _copied_hook(hook: Any, memo: dict[int, Any]) -> Any:
    try:
        return _rebound(hook, memo) if isinstance(hook, FunctionType) else copy.deepcopy(hook, memo)
    except Exception:  # of whatever it is bound to: a file, a logger, a trainer
        return hook


def _rebind(layers: list[nn.Module], memo: dict[int, Any]) -> None:
    """Functions, such as a ``forward`` that was put in, and weak references refer to the copies in a copy."""
    for layer in layers:
        new = memo.get(id(layer))
        if not isinstance(new, nn.Module) or isinstance(new, torch.jit.ScriptModule):
            continue
        for name, value in list(vars(new).items()):
            if not isinstance(value, (FunctionType, weakref.ReferenceType)):
                continue
            vars(new)[name] = _copy_of(value, memo)
            words = value.__code__.co_names if isinstance(value, FunctionType) else ()
            for word in words:
                referred = getattr(value, "__globals__", {}).get(word)
                if _copy_of(referred, memo) is not referred:
                    raise InputError(
                        f"attribute {name!r} of a {type(layer).__name__} uses the module itself by the "
                        f"global name {word!r}, so a copy would run the original; write it as a method, or "
                        "within a function"
                    )


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """``function``, with the copies of the modules and methods that it has from where it was written."""
    cells = function.__closure__ or ()
    if id(function) in memo or not cells:
        return memo.get(id(function), function)  # type: ignore[no-any-return]
    memo[id(function)] = function  # one that holds itself ends here
    contents = [_content(cell) for cell in cells]
    copies = [_copy_of(content, memo) for content in contents]
    if any(new is not old for new, old in zip(copies, contents, strict=True)):
        pairs = zip(cells, copies, contents, strict=True)
        own = tuple(cell if new is old else CellType(new) for cell, new, old in pairs)
        made = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, own
        )
        made.__kwdefaults__ = function.__kwdefaults__
        vars(made).update(vars(function))
        memo[id(function)] = made
    return memo[id(function)]  # type: ignore[no-any-return]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return None


def _copy_of(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        owner = memo.get(id(value.__self__), value.__self__)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, weakref.ReferenceType) and id(value()) in memo:
        return weakref.ref(memo[id(value())])
    return _rebound(value, memo) if isinstance(value, FunctionType) else value


def _check_copy(made: nn.Module, layers: dict[str, nn.Module], registered: dict[int, Any]) -> None:
    """See to it that the copy is one and holds its new tensors: a class may copy itself in its own way."""
    for path, old in layers.items():
        try:
            new = made.get_submodule(plain_name(path))
        except AttributeError:
            if not registered:
                continue
            raise InputError(f"{_called(path, old)} is not part of what its owner copies itself to") from None
        if new is old:
            raise InputError(f"{_called(path, old)} cannot be copied: what it gives as its copy is itself")
        for mine, its in ((old._parameters, new._parameters), (old._buffers, new._buffers)):
            for name, tensor in mine.items():
                wanted = registered.get(id(tensor))
                if wanted is not None and its.get(name) is not wanted:
                    its[name] = wanted


def _why_not(layers: dict[str, nn.Module], kept: Callable[[Tensor], Tensor] | None, error: Exception) -> str:
    """A sentence that names what cannot be copied."""
    if isinstance(error, InputError):
        return str(error)
    for path, layer in layers.items():
        for name, value in _own_attributes(layer):
            try:
                with _Copying(kept):
                    copy.deepcopy(value, {id(other): other for other in layers.values()})
            except Exception as reason:
                said = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:200]
                return (
                    f"attribute {name!r} of {_called(path, layer)} cannot be copied ({said}); take it off "
                    "the module first"
                )
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return f"{type(layers['']).__name__} cannot be copied ({said})"


def _own_attributes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(layer).items():
        if name not in ("_parameters", "_buffers", "_modules", "_compiled_call_impl", *_HOOKS):
            yield name, value


def _called(path: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    return f"layer {plain_name(path)!r} ({kind})" if path else kind
