"""The shape of the code: imports point one way, files are small and named by nouns, nothing is printed or unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parents[1] / "lens_steer"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the face down to the numbers; a room may import from rooms of a larger number, and from its own.
LEVELS = {
    "__main__": -1,
    "cli": 0,
    "report": 1,
    "playground": 1,
    "evaluation": 2,
    "effects": 2,
    "methods": 3,
    "ranking": 4,
    "interventions": 5,
    "activations": 6,
    "host": 7,
    "texts": 8,
    "microworld": 9,
    "statistics": 9,
    "records": 8,
    "directories": 9,
    "progress": 9,
    "processes": 9,
    "interruption": 9,
    "display": 10,
    "invocation": 9,
    "resumption": 6,
    "settings": 10,
    "errors": 11,
}
# Rooms of one level that may see each other.
NEIGHBOURS = {
    ("evaluation", "effects"),
    ("effects", "evaluation"),
}
# Floors that know arrays, their own errors and how a result shows itself only.
GROUND = ("microworld", "statistics")
BARRED_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "manager", "managers", "misc"}
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[tuple[str, str, bool], ...]:
    """Return (module, name or "", whether inside a function that may look up) for every import of a file."""

    def visit(node: ast.AST, function: str | None) -> Iterator[tuple[str, str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Import):
                yield from ((alias.name, "", inside == "plot") for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{label(path)}:{child.lineno} has a relative import"
                yield from ((child.module or "", alias.name, inside == "plot") for alias in child.names)
            yield from visit(child, inside)

    return tuple(visit(tree(path), None))


def our_rooms(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (room, what was written) for every import of our own, but the one upward call that is allowed."""
    for module, name, in_plot in imports(path):
        if module == "lens_steer":
            yield (name or "lens_steer"), f"{module}.{name}"
        elif module.startswith("lens_steer."):
            if in_plot and (module, name) == ("lens_steer.report.plots", "plot"):
                continue
            yield module.split(".")[1], f"{module}.{name}"


def test_every_room_has_its_place() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms <= LEVELS.keys(), f"give {rooms - LEVELS.keys()} a level"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_imports_point_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the face: it names homes, and loads them when they are used
    here = room(path)
    for target, written in our_rooms(path):
        assert target in LEVELS, f"{label(path)} imports {written}: a public name is imported from its home"
        allowed = target == here or LEVELS[target] > LEVELS[here] or (here, target) in NEIGHBOURS
        assert allowed, f"{label(path)} ({here}) imports {written}: imports point from the face down to the numbers"
        if here in GROUND:
            known = (here, "errors", "display")
            assert target in known, f"{label(path)} imports {written}: {here} knows errors and display only"


def our_modules(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it, but for the one upward call."""
    modules = set()
    for module, name, in_plot in imports(path):
        if module.startswith("lens_steer") and not (in_plot and module == "lens_steer.report.plots"):
            inner = f"{module}.{name}".replace(".", "/") + ".py"
            modules.add(f"{module}.{name}" if (PACKAGE.parent / inner).exists() else module)
    return modules


def test_no_two_files_import_each_other() -> None:
    """No file imports, by whatever way round, a file that imports it."""
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    reached = [our_modules(path) for path in MODULES]
    imported = np.array([[name in modules for name in names] for modules in reached])
    _, circle = connected_components(imported & ~np.eye(len(names), dtype=bool), directed=True, connection="strong")
    circles = [[names[i] for i in np.flatnonzero(circle == number)] for number in np.unique(circle)]
    assert not (several := [names_in for names_in in circles if len(names_in) > 1]), (
        f"these import each other: {several}"
    )


def test_only_faces_and_registers_load_by_name() -> None:
    """What `import_module` loads no rule above sees: the faces name homes, a register finds what a name stands for."""
    allowed = {"microworld/__init__.py", "report/plots.py", "interventions/maps.py"}
    loading = {label(path) for path in MODULES if any(name == "import_module" for _, name, _ in imports(path))}
    assert loading <= allowed, f"{sorted(loading - allowed)} load modules by name: write the import"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_transformer_lens_lives_in_one_room(path: Path) -> None:
    if room(path) == "host":
        return
    for module, _, _ in imports(path):
        assert module.split(".")[0] != "transformer_lens", f"{label(path)} imports {module}; only host/ does"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_files_are_small_and_say_what_they_are(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400, f"{label(path)} has {len(lines)} lines: that is two ideas"
    barred = {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} & BARRED_NAMES
    assert not barred, f"{label(path)} is named {barred}: a file is named by the noun it holds"
    docstring = ast.get_docstring(tree(path))
    assert docstring, f"{label(path)} has no docstring"


def calls_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_nothing_is_unpickled(path: Path) -> None:
    for module, name, _ in imports(path):
        assert module.split(".")[0] not in PICKLES, f"{label(path)} imports {module}"
        assert (module, name) not in {("torch", "load"), ("numpy", "load")}, f"{label(path)} imports {module}.{name}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called, place = ast.unparse(node.func), f"{label(path)}:{node.lineno}"
            assert called not in {"torch.load", "pd.read_pickle", "eval", "exec"}, f"{place} calls {called}"
            if called in {"np.load", "numpy.load"}:
                assert not any(word.arg == "allow_pickle" for word in node.keywords), f"{place} reads a pickle"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_nothing_is_printed(path: Path) -> None:
    """The result of a command is, in its `main`."""
    allowed = {
        node.lineno
        for function in functions(path)
        if function.name == "main"
        for node in ast.walk(function)
        if calls_print(node)
    }
    for node in ast.walk(tree(path)):
        assert not calls_print(node) or node.lineno in allowed, f"{label(path)}:{node.lineno} prints"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_what_is_handed_in_is_not_asserted(path: Path) -> None:
    """An assert may tell the type checker what a value is, not the user what an argument should have been."""
    for function in functions(path):
        given = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        for node in ast.walk(function):
            if not isinstance(node, ast.Assert):
                continue
            for call in ast.walk(node.test):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "isinstance":
                    asked = ast.unparse(call.args[0])
                    assert asked not in given, f"{label(path)}:{node.lineno} asserts what {asked} is: raise an error"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_errors_come_from_the_one_tree(path: Path) -> None:
    """A user's mistake is a LensSteerError; a builtin error may only be one that the function itself catches."""
    barred = {"ValueError", "TypeError", "RuntimeError", "Exception", "AssertionError", "OSError", "IndexError"}
    parsed = tree(path)
    caught = {
        id(node)
        for attempt in ast.walk(parsed)
        if isinstance(attempt, ast.Try)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(parsed):
        if isinstance(node, ast.Raise) and node.exc is not None and id(node) not in caught:
            name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            assert name not in barred, f"{label(path)}:{node.lineno} raises {name}"


def test_the_tests_would_see_a_breach(tmp_path: Path) -> None:
    """The rules are read off the source: an import in a function is seen, that of `plot` alone is let through."""
    source = tmp_path / "breach.py"
    source.write_text(
        "def fit():\n    from lens_steer.report.plots import plot\n"
        "def plot(self):\n    from lens_steer.report.plots import plot\n    from lens_steer.report.html import write\n"
        "import lens_steer.cli\nfrom lens_steer import host\n"
    )
    assert sorted(written for _, written in our_rooms(source)) == [
        "lens_steer.cli.",
        "lens_steer.host",
        "lens_steer.report.html.write",
        "lens_steer.report.plots.plot",
    ]
