"""Write the reference pages (commands, settings, events, files) from the program: `python docs/make_reference.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer.main

from voxloop import pipeline, settings
from voxloop.cli.app import app, value_name

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "src" / "voxloop"


def commands_page() -> str:
    """Every command with its arguments and options, as the program states them."""
    root = typer.main.get_command(app)
    lines = ["# Commands", "", "Written by `python docs/make_reference.py`; a test holds it true.", ""]
    lines += ["Every command takes the workspace with `voxloop -C FOLDER` or `VOXLOOP_WORKSPACE`; the exit status is 0"]
    lines += ["where it was done, 1 where it failed, 2 where it was asked for wrongly.", ""]
    for path, command in _walk("voxloop", root):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join([path, *(_metavar(p) for p in arguments)])
        usage += " [OPTIONS]" if options else ""
        lines += [f"## {path}", "", (command.help or "").strip(), "", "```", usage, "```", ""]
        described = [(f"`{_option(p)}`", _meaning(p)) for p in options]
        described += [(f"`{_metavar(p)}`", _meaning(p)) for p in arguments if getattr(p, "help", "")]
        if described:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {name} | {meaning} |" for name, meaning in described]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _meaning(parameter: Any) -> str:
    """What a parameter does, with its choices and its default, as `--help` shows them."""
    told = [parameter.help or ""]
    choices = parameter.type_descriptor.annotation
    if isinstance(choices, type) and issubclass(choices, StrEnum):
        told.append("One of " + ", ".join(f"`{choice}`" for choice in choices) + ".")
    if parameter.required and parameter.param_type_name == "option":
        told.append("Required.")
    elif isinstance(parameter.show_default, str):
        told.append(f"Default: {parameter.show_default}.")
    elif parameter.default not in (None, False, ()) and not callable(parameter.default):
        told.append(f"Default: `{_default(parameter)}`.")
    return " ".join(told)


def _option(parameter: Any) -> str:
    """`--limit N`; choices stand with the meaning."""
    name, value = ", ".join([*parameter.opts, *parameter.secondary_opts]), value_name(parameter)
    return f"{name} {value}" if value and "|" not in value else name


def _default(parameter: Any) -> Any:
    if parameter.default is True:
        return parameter.opts[0]
    return getattr(parameter.default, "value", parameter.default)


def _metavar(parameter: Any) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _walk(f"{path} {name}", child)
    else:
        yield path, command


def settings_page() -> str:
    """Every setting with its default and meaning."""
    lines = ["# Settings", "", "Written by `python docs/make_reference.py`; a test holds it true.", ""]
    lines += [
        "They stand in the workspace's `voxloop.toml`; the variable `VOXLOOP_<NAME>` of the environment wins.",
        "",
    ]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for name, default, meaning in settings.described():
        shown = "/".join(map(str, default)) if isinstance(default, tuple) else default
        lines.append(f"| `{name}` | {f'`{shown}`' if shown not in ('', {}) else 'empty'} | {meaning} |")
    return "\n".join(lines) + "\n"


def events_page() -> str:
    """Every event with its meaning, and the steps that it wakes."""
    lines = ["# Events", "", "Written by `python docs/make_reference.py`; a test holds it true.", ""]
    lines += [
        "`voxloop events` lists what happened, `--follow` waits for more, and `--json` prints one object on each line:",
        "`seq`, `id`, `created` (seconds since the epoch), `type`, `subject`, `payload`. The subject is the id of the",
        "recording, utterance, dataset, run or model that the event is about; for `recording.rejected` it is the path",
        "of the file, for `recording.forgotten` and `speaker.forgotten` the id of the removal. An event is written in",
        "the transaction of the change that it reports.",
        "",
    ]
    lines += ["| event | meaning | wakes |", "|---|---|---|"]
    for name, meaning in pipeline.EVENTS.items():
        woken = ", ".join(f"`{step}`" for step in pipeline.LISTENERS.get(name, ()))
        lines.append(f"| `{name}` | {meaning} | {woken} |")
    return "\n".join(lines) + "\n"


def architecture_page() -> str:
    """docs/architecture.md with its tree as the modules' docstrings have it."""
    page = (HERE / "architecture.md").read_text()
    head, _, rest = page.partition("```text\n")
    _, _, tail = rest.partition("```")
    return f"{head}```text\n{_tree(PACKAGE)}```{tail}"


def _tree(folder: Path, indent: str = "") -> str:
    lines = ""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.suffix == ".py" and (path.name != "__init__.py" or not indent):
            lines += f"{indent}{path.name:<{26 - len(indent)}}{_first_line(path)}\n"
        elif path.is_dir() and (path / "__init__.py").exists():
            lines += f"{indent}{path.name + '/':<{26 - len(indent)}}{_first_line(path / '__init__.py')}\n"
            lines += _tree(path, indent + "  ")
    return lines


def _first_line(module: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


if __name__ == "__main__":
    (HERE / "architecture.md").write_text(architecture_page())
    (HERE / "commands.md").write_text(commands_page())
    (HERE / "events.md").write_text(events_page())
    (HERE / "settings.md").write_text(settings_page())
