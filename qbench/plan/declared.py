"""What a class declares, read from its source: name, version, fields and their defaults.

A plan asks this of every method and measurement of a sweep. Importing them would load torch, transformers and lm-eval,
many seconds for a few strings; the source says the same to the parser. Only literals are understood (numbers, strings,
None, tuples) and bare names, which come back as strings; a default that is computed is not in the answer.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def declared(target: str) -> dict:
    """Class attributes of ``package.module.Class`` by name, those of its bases included, its own first.

    ValueError where there is no such module or class.
    """
    module, _, name = target.rpartition(".")
    tree = _tree(module)
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None:
        raise ValueError(f"{target} was asked for, but {module} defines no class {name}; check _target_")
    facts = {}
    for base in reversed(found.bases):
        facts |= _of_base(base, module, tree)
    for node in found.body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target_node = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target_node, ast.Name):
                facts.pop(target_node.id, None)  # a computed default hides the base's
                facts |= _literal(target_node.id, node.value)
    return facts


def _of_base(base: ast.expr, module: str, tree: ast.Module) -> dict:
    if not isinstance(base, ast.Name):
        return {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return declared(f"{module}.{base.id}")
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == base.id:
                    return declared(f"{node.module}.{alias.name}")
    return {}


def _literal(name: str, value: ast.expr) -> dict:
    if isinstance(value, ast.Name):
        return {name: value.id}
    try:
        return {name: ast.literal_eval(value)}
    except ValueError:
        return {}


@cache
def _tree(module: str) -> ast.Module:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ValueError(
            f"a configuration asks for a class of {module or 'no module'}, which has no Python source here"
        )
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
