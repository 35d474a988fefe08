"""The source is laid out as docs/architecture.md says: small files, faces without logic, events that are all listed."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from voxloop.pipeline import EVENTS, LISTENERS, STEPS

PACKAGE = Path(__file__).parents[2] / "src" / "voxloop"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 600

# Event types that are put together where they are emitted, and what they can become.
PUT_TOGETHER = {
    "training.{status}": {"training.failed", "training.paused", "training.stopped"},
    "{report.kind}.forgotten": {"recording.forgotten", "speaker.forgotten", "utterance.forgotten"},
}


def name(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def test_no_file_is_long() -> None:
    assert MODULES
    lengths = {name(module): len(module.read_text().splitlines()) for module in MODULES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("face", [module for module in MODULES if module.name == "__init__.py"], ids=name)
def test_a_face_holds_no_logic(face: Path) -> None:
    assert [ast.unparse(node) for node in ast.parse(face.read_text()).body if not is_face(node)] == []


def is_face(node: ast.stmt) -> bool:
    """Whether a statement may stand in an `__init__.py`: a docstring, an import, `__all__`, a constant."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        constant = all(
            isinstance(target, ast.Name) and (target.id.isupper() or target.id.startswith("__")) for target in targets
        )
        return constant and not any(isinstance(part, ast.Lambda | ast.comprehension) for part in ast.walk(node))
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize(
    "line", ["def f(): ...", "if True: X = 1", "x = 1", "X = [a for a in b]", "f()", "X = lambda: 1"]
)
def test_logic_is_seen_in_a_face(line: str) -> None:
    assert not all(map(is_face, ast.parse(line).body))


def test_every_event_is_listed_and_every_listed_one_is_emitted() -> None:
    emitted: set[str] = set()
    put_together: set[str] = set()
    for module in MODULES:
        tree = ast.parse(module.read_text())
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for type_ in event_types(tree):
            if isinstance(type_, ast.Constant):
                emitted.add(type_.value)
            elif isinstance(type_, ast.JoinedStr):
                put_together.add(ast.unparse(type_)[2:-1])
            elif isinstance(type_, ast.Name) and type_.id in constants:
                emitted.add(constants[type_.id])
            else:
                # `Transaction` hands on to `Jobs` what it was given itself.
                assert name(module) in ("workspace.py", "stores/jobs.py"), f"{name(module)}: {ast.unparse(type_)}"
    assert put_together == PUT_TOGETHER.keys()
    assert emitted.union(*PUT_TOGETHER.values()) == EVENTS.keys()


def event_types(tree: ast.Module) -> list[ast.expr]:
    """What stands for the event's type in each call of `emit` and `emit_all`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="emit" | "emit_all"), args=[ast.Name(id="self" | "tx"), type_, *_]):
                found.append(type_)  # `Jobs` takes the transaction first
            case ast.Call(func=ast.Attribute(attr="emit" | "emit_all"), args=[type_, *_]):
                found.append(type_)
    return found


def test_what_is_listened_to_is_emitted_and_does_something() -> None:
    assert LISTENERS.keys() <= EVENTS.keys()
    assert {step for steps in LISTENERS.values() for step in steps} == STEPS.keys()
    for step in STEPS.values():
        for name in filter(None, (step.function, step.condition)):
            module, _, function = name.rpartition(".")
            assert callable(getattr(import_module(f"voxloop.steps.{module}"), function))


def test_an_event_is_told_of_in_one_sentence() -> None:
    for meaning in EVENTS.values():
        assert meaning[0].isupper()
        assert meaning.count(".") == 1
        assert meaning.endswith(".")
