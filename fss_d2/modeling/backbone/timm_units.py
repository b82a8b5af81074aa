"""Where in a timm model its blocks are, and what lies between its feature maps."""

from torch import nn

__all__ = ["candidate_units", "neighbours"]


def candidate_units(model: nn.Module) -> list[str]:
    """Return the names of the submodules that look like blocks, in the order in which they are registered.

    Where timm's stages are attributes of the model ("layer1", "s2"), they hold the blocks; where they are
    members of a container ("stages.0", "blocks.4", "features.7"), they and their siblings hold blocks in
    sequences, or are blocks themselves. Single layers (modules without children) are no blocks.
    """
    modules = dict(model.named_modules())
    roots: dict[str, bool] = {}  # name -> whether it is a member of a container
    for info in model.feature_info:
        parent, _, _ = info["module"].rpartition(".")
        if parent in modules and parent:
            roots |= {f"{parent}.{child}": True for child, _ in modules[parent].named_children()}
        elif info["module"] in modules and info["module"]:
            roots[info["module"]] = False

    units: list[str] = []
    for root, is_member in roots.items():
        module = modules[root]
        children = [(f"{root}.{key}", child) for key, child in module.named_children()]
        found = [unit for key, child in children if _is_sequence(child) for unit in _flatten(key, child)]
        if _is_sequence(module) or (not found and not is_member):
            found = [unit for key, child in children for unit in _flatten(key, child)]
        units += found or ([root] if children else [])
    return units


def _flatten(name: str, module: nn.Module) -> list[str]:
    """Return the names of the composite modules in nested sequences, or of the module itself."""
    if _is_sequence(module):
        return [unit for key, child in module.named_children() for unit in _flatten(f"{name}.{key}", child)]
    return [name] if any(True for _ in module.children()) else []


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def neighbours(model: nn.Module, first: str, last: str) -> list[str]:
    """Return the names of the modules after `first`, up to and with `last`, in their common container.

    Empty where the two have none.
    """
    container, _, key = last.rpartition(".")
    before, _, start = first.rpartition(".")
    siblings = [name for name, _ in model.get_submodule(container).named_children()]
    if before != container or not {start, key} <= set(siblings):
        return []
    between = siblings[siblings.index(start) + 1 : siblings.index(key) + 1]
    return [f"{container}.{name}".lstrip(".") for name in between]
