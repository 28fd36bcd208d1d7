"""The shape of the library: imports point down, files stay short, public names show examples."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "tinyjax").rglob("*.py"))
ORACLES = sorted((ROOT / "tests" / "oracles").rglob("*.py"))
MAX_LINES = 300

# What each layer may import of ours, besides itself. `tinyjax/__init__.py` re-exports them all.
MAY_IMPORT = {
    "numerics": set(),
    "base": {"compat"},
    "compat": set(),
    "graph": {"base", "compat"},
    "rules": {"base", "compat", "numerics"},
    "blocks": {"base", "compat", "numerics", "graph"},
    "gates": {"numerics"},
    "gating": {"gates", "numerics"},
    "gate_training": {"gating", "numerics"},
    "limits": {"base"},
    "drifting": {"base"},
    "describing": {"base", "blocks", "compat"},
    "several": {"base"},
    "rewrite": {"base", "blocks", "compat", "numerics", "graph", "rules"},
    "combine": {"base", "compat", "numerics", "rewrite"},
    "step": {"base", "compat", "numerics", "rewrite"},
    "counting": {"compat"},
    "alone": {"base", "compat", "graph", "numerics"},
    "timing": {"alone", "base"},
    "advice": {"alone", "base", "combine", "numerics"},
    "auditing": {
        "advice",
        "alone",
        "base",
        "combine",
        "counting",
        "graph",
        "rewrite",
        "timing",
        "transforms",
    },
    "codes": {"base", "streams"},
    "entropy": {
        "base",
        "codes",
        "contexts",
        "lossless",
        "numerics",
        "order0",
        "streams",
        "transforms",
    },
    "portable": {"compat", "numerics"},
    "calibration": {"base", "numerics", "rewrite"},
    "residuals": {"compat", "numerics"},
    "scaling": {"base", "numerics"},
    "transforms": {
        "numerics",
        "base",
        "blocks",
        "codes",
        "combine",
        "gates",
        "residuals",
        "scaling",
    },
    "frames": {"codes", "numerics"},
    "stream_frames": {"frames", "numerics", "streams"},
    "delta_frames": {"codes", "frames", "stream_frames", "streams"},
    "uplink": {
        "base",
        "codes",
        "contexts",
        "delta_streams",
        "entropy",
        "numerics",
        "streams",
        "transforms",
    },
    "delta_streams": {
        "base",
        "codes",
        "contexts",
        "lossless",
        "numerics",
        "order0",
        "streams",
    },
    "wire": {"codes", "contexts", "delta_frames", "frames", "states", "stream_frames", "streams"},
    "collab": {"base", "codes", "contexts", "entropy", "streams", "transforms", "wire"},
    "contexts": {"numerics"},
    "states": {"contexts", "numerics"},
    "streams": {"numerics"},
    "choice": {"numerics", "streams"},
    "order0": {"choice", "numerics", "streams"},
    "lossless": {"choice", "contexts", "numerics", "streams"},
}
# The one reference that points up: (layer, where in it, layer referred to).
PERMITTED_UPWARD = {("base", "Transform.__call__", "step")}


class Import(NamedTuple):
    """One imported name, with the class and function it is imported in ("" at the top)."""

    target: str
    scope: str
    line: int


def dotted(path: Path) -> str:
    """The module name of a file: ``tinyjax/numerics/__init__.py`` is ``tinyjax.numerics``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str, scope: str = "") -> Iterator[Import]:
    """Every import below ``tree``, made absolute from ``package``, a name at a time."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(a.name, scope, node.lineno) for a in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                head = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*head, *([module] if module else [])])
                yield from (Import(f"{base}.{a.name}", scope, node.lineno) for a in names)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield from imports(node, package, f"{scope}.{name}" if scope else name)
            case _:
                yield from imports(node, package, scope)


def imports_of(path: Path) -> list[Import]:
    """Every import of a file."""
    name = dotted(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(imports(ast.parse(path.read_text()), package))


def layer_of(name: str) -> str:
    """The layer a dotted name belongs to: ``tinyjax.numerics.quantize`` is in ``numerics``."""
    return name.partition(".")[2].partition(".")[0]


def misplaced(layer: str, found: list[Import]) -> list[str]:
    """The imports of ours that a layer may not have, each as a line to read."""
    allowed = MAY_IMPORT[layer] | {layer}
    return [
        f"line {i.line}: {layer} imports {i.target}"
        for i in found
        if i.target.split(".")[0] == "tinyjax"
        and layer_of(i.target) not in allowed
        and (layer, i.scope, layer_of(i.target)) not in PERMITTED_UPWARD
    ]


def is_or_below(target: str, *names: str) -> bool:
    """Whether a dotted name is one of ``names`` or something inside one."""
    return any(target == n or target.startswith(n + ".") for n in names)


def attributes(tree: ast.AST) -> Iterator[str]:
    """Every dotted expression in a tree, as text: ``jax.extend.core``."""
    return (ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute))


def relative(path: Path) -> str:
    """How a file is called in the test's name."""
    return str(path.relative_to(ROOT))


each_module = pytest.mark.parametrize("path", MODULES, ids=relative)


def test_the_library_is_there():
    assert MODULES, f"no modules below {ROOT / 'tinyjax'}"


@each_module
def test_imports_point_down(path):
    layer = layer_of(dotted(path))
    if layer == "":
        return  # tinyjax/__init__.py stands on top and re-exports
    assert layer in MAY_IMPORT, f"say in MAY_IMPORT what the new layer {layer!r} may import"
    assert misplaced(layer, imports_of(path)) == []


@each_module
def test_library_does_not_import_what_stands_on_it(path):
    found = [i.target for i in imports_of(path)]
    assert [t for t in found if is_or_below(t, "experiments", "benchmarks", "tests")] == []


@each_module
def test_only_compat_touches_jax_extend(path):
    if path == ROOT / "tinyjax" / "compat.py":
        return
    found = [i.target for i in imports_of(path)] + list(attributes(ast.parse(path.read_text())))
    assert [t for t in found if is_or_below(t, "jax.extend")] == []


@each_module
def test_only_collab_knows_grpc(path):
    assert layer_of(dotted(path)) == "collab" or "grpc" not in path.read_text()


@each_module
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines: split it"


@each_module
def test_modules_say_what_is_public(path):
    assigned = {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned, f"{relative(path)} has no __all__"


@pytest.mark.parametrize("path", ORACLES, ids=relative)
def test_oracles_share_nothing_with_what_they_judge(path):
    found = [i.target for i in imports_of(path)]
    bad = [
        t
        for t in found
        if is_or_below(t, "jax", "jaxlib", "flax", "optax", "chex", "tinyjax")
        or (is_or_below(t, "tests") and not is_or_below(t, "tests.oracles"))
    ]
    assert bad == []


@pytest.mark.parametrize(
    "package", ["tinyjax", "tinyjax.numerics", "tinyjax.transforms", "tinyjax.collab"]
)
def test_public_names_show_an_example(package):
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    bare = [
        name
        for name, value in public.items()
        if ">>>" not in (value.__doc__ or "") and not inspect.ismodule(value)
    ]
    assert bare == [], f"these names of {package} have no example in their docstring"
    assert [name for name, value in public.items() if not value.__doc__] == []


# The checks above, checked.


def parsed(source: str, package: str = "tinyjax") -> list[Import]:
    return list(imports(ast.parse(source), package))


@pytest.mark.parametrize(
    ("source", "package", "target"),
    [
        ("import tinyjax.step", "tinyjax", "tinyjax.step"),
        ("from tinyjax import step", "tinyjax", "tinyjax.step"),
        ("from . import step", "tinyjax", "tinyjax.step"),
        ("from .step import over_step", "tinyjax", "tinyjax.step.over_step"),
        ("from ..step import over_step", "tinyjax.numerics", "tinyjax.step.over_step"),
        ("if True:\n    from tinyjax import step", "tinyjax", "tinyjax.step"),
        ("def f():\n    import tinyjax.step", "tinyjax", "tinyjax.step"),
    ],
)
def test_imports_are_found(source, package, target):
    assert [i.target for i in parsed(source, package)] == [target]


def test_upward_import_is_refused_except_the_permitted_one():
    inside = "class Transform:\n    def {}(self):\n        from tinyjax.step import over_step"
    assert misplaced("base", parsed(inside.format("__call__"))) == []
    assert misplaced("base", parsed(inside.format("other"))) != []
    assert misplaced("base", parsed("from tinyjax.step import over_step")) != []
    assert misplaced("numerics", parsed("from tinyjax import Site")) != []
    assert misplaced("transforms", parsed("from tinyjax.base import Transform")) == []
