"""From patterns to the linear layers they name, with errors that say what the model has instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from toolkit.adapters.api import AdapterLike, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A linear layer that is to be adapted."""

    site: Site
    linear: nn.Linear
    paths: tuple[str, ...]
    """Every path under which the model holds this layer; more than one where blocks share it."""
    method: AdapterLike


def find_targets(model: nn.Module, adapters: Mapping[str, AdapterLike]) -> list[Target]:
    """The linear layers that the patterns name, in the model's order; ValueError as `adapt` says."""
    if not adapters:
        raise ValueError('no adapters given; expected patterns such as {"*.q_proj": LoRA(rank=8)}')
    modules: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            modules.setdefault(module, []).append(path)
    targets: list[Target] = []
    unused = set(adapters)
    for module, paths in modules.items():
        matching = [pattern for pattern in adapters if any(fnmatchcase(path, pattern) for path in paths)]
        if type(module) is not nn.Linear or not matching:
            continue
        if len(matching) > 1:
            raise ValueError(f"{paths[0]} is named by {' and '.join(map(repr, matching))}; one pattern a module")
        unused.discard(matching[0])
        site = Site(
            path=paths[0],
            index=len(targets),
            layer=_layer(paths[0]),
            shape=(module.out_features, module.in_features),
        )
        targets.append(Target(site=site, linear=module, paths=tuple(paths), method=adapters[matching[0]]))
    for pattern in adapters:
        if pattern in unused:
            raise ValueError(_no_match(pattern, modules))
    return targets


def choose_targets(model: nn.Module, methods: Mapping[str, AdapterLike]) -> list[Target]:
    """The targets with exactly these module paths; ValueError for a path that is no linear layer."""
    targets = []
    for path, method in methods.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ValueError(f"the model has no module {path!r}") from None
        if type(module) is not nn.Linear:
            raise ValueError(f"{path} is a {type(module).__name__}, not a torch.nn.Linear")
        paths = tuple(name for name, other in model.named_modules(remove_duplicate=False) if other is module)
        site = Site(path=path, index=len(targets), layer=_layer(path), shape=(module.out_features, module.in_features))
        targets.append(Target(site=site, linear=module, paths=paths, method=method))
    return targets


def _layer(path: str) -> int | None:
    """The first number in the path: the block, in every model that keeps its blocks in a list."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _no_match(pattern: str, modules: Mapping[nn.Module, list[str]]) -> str:
    """The message for a pattern that names no linear layer: what it did name, what is near, what there is."""
    others = Counter(
        type(module).__name__ for module, paths in modules.items() if any(fnmatchcase(path, pattern) for path in paths)
    )
    linears = [paths[0] for module, paths in modules.items() if type(module) is nn.Linear]
    names = Counter("*." + path.rpartition(".")[2] if "." in path else path for path in linears)
    near = get_close_matches(pattern, [*names, *linears], n=3, cutoff=0.5)
    found = ", ".join(f"{count} {kind}" for kind, count in others.items())
    message = f"{pattern!r} matches {f'only {found}' if found else 'no module'}, and no torch.nn.Linear"
    if near:
        message += f"; near: {', '.join(map(repr, near))}"
    if not names:
        return message + "; the model has no torch.nn.Linear"
    listed = ", ".join(f"{name!r} ({count})" for name, count in names.most_common(12))
    return f"{message}; its linear layers: {listed}"
