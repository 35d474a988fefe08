"""up, watch, orchestrate, plan, and automation pause, resume, start."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from voxloop.cli.screen import By, Json, lasting, opened, print_json, when
from voxloop.cli.serve import Door, Host, NoAuth, Port, TlsCert, TlsKey, WyomingHost, WyomingPort

if TYPE_CHECKING:
    from voxloop.automation.orchestrator import Plan

automation = typer.Typer(
    no_args_is_help=True, help="Automatic runs: pause and resume them, or start one without waiting for its time."
)


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(watch)
    app.command()(orchestrate)
    app.command()(plan)
    app.add_typer(automation, name="automation")


def up(
    ctx: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8321,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    wyoming_port: WyomingPort = None,
    wyoming_host: WyomingHost = "127.0.0.1",
    no_auth: NoAuth = False,
    workers: Annotated[int, typer.Option(help="Processes that transcribe and do all other short steps.", min=1)] = 1,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Run everything but the server.")] = False,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Run everything but training, for a machine that only transcribes.")
    ] = False,
) -> None:
    """Run the whole loop until Ctrl-C: server, watcher, orchestrator and workers. What dies is started again."""
    import signal

    from voxloop.automation.relaying import relaying
    from voxloop.automation.supervising import Group

    door = Door(host, port, tls_cert, tls_key, wyoming_port, wyoming_host, no_auth)
    with ExitStack() as stack:
        sockets = [] if no_serve else door.open(stack)
        ws = stack.enter_context(opened(ctx, create=True))
        group = Group(ws, told=_told, workers=workers, train=not no_train)
        # Before the server takes them over, which raises them again when it has ended.
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: group.stop.set())
        with relaying(ws), group:
            group.work()
            group.watch()
            group.orchestrate()
            group.notify()
            if no_serve:
                group.stop.wait()
            else:
                web = group.add("web")
                web.tell(f"serves {door.url(ws, sockets[0])}")
                if not door.serve(ws, sockets, parts=group.states, ending=group.stop.set):
                    raise typer.Exit(1)
                web.tell("stopped")


def _told(name: str, line: str) -> None:
    typer.echo(f"{name:<13}{line}", err=True)


def watch(ctx: typer.Context) -> None:
    """Ingest audio files as they arrive in the inbox, until Ctrl-C, and move them to `processed` or `failed`."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from voxloop.automation.bucket_inbox import sources
    from voxloop.automation.watching import Source, Troubles, Watched
    from voxloop.automation.watching import watch as run

    stop = threading.Event()
    _end_with_signals(stop)
    with opened(ctx, create=True) as ws:
        troubles = Troubles(told=lambda message: typer.echo(message, err=True))
        found = sources(ws, troubles)

        def watched(source: Source) -> Watched:
            typer.echo(f"watching {source.name}; Ctrl-C ends", err=True)
            return run(ws, source, stop=stop, troubles=troubles, told=lambda line: typer.echo(line, err=True))

        with ThreadPoolExecutor(len(found)) as threads:
            done = list(threads.map(watched, found))
    taken, known, refused = (sum(getattr(one, name) for one in done) for name in ("taken", "known", "refused"))
    typer.echo(f"{taken} ingested, {known} of them known before, {refused} refused")


def orchestrate(ctx: typer.Context) -> None:
    """Start automatic runs when there is enough new speech or it is time, until Ctrl-C. Workers do the work."""
    import threading

    from voxloop.automation.orchestrator import orchestrate as run
    from voxloop.automation.relaying import relaying
    from voxloop.automation.webhook import Webhook

    stop = threading.Event()
    _end_with_signals(stop)
    with opened(ctx, create=True) as ws:
        sending = None
        if ws.settings.webhook_url:
            webhook = Webhook(ws, told=lambda line: typer.echo(f"webhook {line}", err=True))
            sending = threading.Thread(target=webhook.run, args=(stop,), name="voxloop-webhook")
            sending.start()
        with relaying(ws):
            run(ws, stop=stop, told=lambda line: typer.echo(line, err=True))
        if sending:
            sending.join()


def _end_with_signals(stop: object) -> None:
    import signal

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())  # type: ignore[attr-defined]


def plan(ctx: typer.Context, as_json: Json = False) -> None:
    """Say whether an automatic run would start now, and why not."""
    from voxloop.automation.orchestrator import plan as look

    with opened(ctx) as ws:
        found = look(ws)
    if as_json:
        print_json(found)
    else:
        _print_plan(found)


def _print_plan(found: Plan) -> None:
    typer.echo("a run would start now" if found.starts else "no run would start now")
    for sentence in found.why:
        typer.echo(f"  {sentence}")
    hours = found.hours
    typer.echo("\nusable speech in all:")
    for name in ("reference", "machine", "candidate", "unsure"):
        typer.echo(f"  {name:<11}{lasting(3600 * getattr(hours, name))}")
    if found.waiting_hours:
        typer.echo(f"  on its way {lasting(3600 * found.waiting_hours)} of audio")
    cycle = found.cycle
    if cycle is not None:
        typer.echo(f"\nnewest automatic run: {cycle.id}, {cycle.state}, started {when(cycle.created)} ({cycle.reason})")
        if cycle.message:
            typer.echo(f"  {cycle.message}")


@automation.command()
def pause(ctx: typer.Context, by: By = "cli") -> None:
    """Start no automatic run until `resume`. A run that has begun goes on."""
    from voxloop.automation import orchestrator

    with opened(ctx) as ws:
        done = orchestrator.pause(ws, by=by)
    typer.echo("automatic runs are paused" if done else "automatic runs were paused already")


@automation.command()
def resume(ctx: typer.Context, by: By = "cli") -> None:
    """Start automatic runs again. A time that passed meanwhile is made up for once."""
    from voxloop.automation import orchestrator

    with opened(ctx) as ws:
        done = orchestrator.resume(ws, by=by)
    typer.echo("automatic runs start again" if done else "automatic runs were not paused")


@automation.command()
def start(ctx: typer.Context, by: By = "cli", as_json: Json = False) -> None:
    """Start an automatic run now: freeze all usable speech, train, evaluate, promote. It needs an orchestrator."""
    from voxloop.automation import orchestrator

    with opened(ctx) as ws:
        cycle = orchestrator.start_now(ws, by=by)
    if as_json:
        print_json(cycle)
    else:
        typer.echo(f"automatic run {cycle.id} is asked for; `voxloop up` or an orchestrator and workers do it")
