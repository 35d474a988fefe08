"""Promotion and rollback of the champion: only on evidence, with a history that is never rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from ulid import ULID

from voxloop import models
from voxloop.errors import ConflictError, UnknownRecord, UsageError
from voxloop.models import CHAMPION
from voxloop.records import Evaluation, Model, Promotion, Run, Split, Verdict
from voxloop.steps import datasets, evaluation
from voxloop.steps.gate import ledger
from voxloop.steps.gate.comparison import NO_BETTER, Comparison, Findings, find, percent
from voxloop.stores import tables

if TYPE_CHECKING:
    from voxloop.families.decoding import Decoding
    from voxloop.records import Progress
    from voxloop.stores.catalog import Reader
    from voxloop.workspace import Transaction, Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionOutcome:
    """The outcome of an attempt to promote: the promotion, or the reasons against it."""

    alias: str
    model: str
    reigning: str  # what it was compared with: the alias's model, or else the base it was fine-tuned from
    verdict: Verdict | None = None  # None: nothing was judged
    promotion: Promotion | None = None  # None: not promoted
    comparison: Comparison | None = None  # None: nothing to compare, or not tried on the test set
    message: str
    next_step: str | None = None  # what to do, in words

    @property
    def moved(self) -> bool:
        return self.promotion is not None


def promote(
    ws: Workspace,
    model: str,
    *,
    dataset: str | None = None,
    general: str | None = None,
    by: str = "cli",
    alias: str = CHAMPION,
    force: bool = False,
    progress: Progress | None = None,
) -> PromotionOutcome:
    """Make a model the champion if it is significantly better on the newest frozen test references.

    The model is compared with the champion or, before there is one, with the base
    it was fine-tuned from, through any number of generations. A model that is no
    better on val is not tried on the test set. Otherwise both models are evaluated
    (reusing stored evaluations) and compared, and the attempt is charged to the
    ledger; the alias moves only on the verdict `promote`. `general` (or the setting
    `promote_general`) names a dataset on whose test split the model must not be
    worse. `force` moves the alias anyway, as `by hand`, with whatever evidence
    exists. Raises UsageError if there is nothing to test on, ConflictError if the
    alias moved in the meantime.
    """
    _check_alias(alias)
    challenger = models.base_model(ws, model)
    with ws.read() as reader:
        held = _held(reader, alias)
    reigning = models.base_model(ws, held.model) if held else untuned(ws, challenger)
    if challenger.id == reigning.id and (held or not force):
        what = f"is already {alias}" if held else f"is a base model, and there is no {alias} to compare it with"
        with ws.completion():  # for a worker, finding nothing to do completes the job
            return PromotionOutcome(
                alias=alias,
                model=challenger.id,
                reigning=reigning.id,
                message=f"{_short(challenger)} {what}; nothing changed",
            )
    if not force and (worse := _no_better_on_val(ws, challenger, reigning, dataset=dataset, progress=progress)):
        with ws.completion():
            return PromotionOutcome(
                alias=alias,
                model=challenger.id,
                reigning=reigning.id,
                verdict="insufficient evidence",
                message=f"{_short(challenger)} was not tried on the test set: {worse}",
                next_step=NO_BETTER,
            )
    general = general or ws.settings.promote_general or None
    # Even with force, a model must be servable: it is converted if CTranslate2 serves, and loaded.
    with models.loaded(ws, challenger):
        pass
    findings, missing = _evidence(
        ws, challenger, reigning, dataset=dataset, general=general, force=force, progress=progress
    )
    promotion: Promotion | None = None
    with ws.completion() as tx:
        comparison = _attempt(ws, tx, findings) if findings else None
        verdict = comparison.verdict if comparison else None
        if verdict == "promote" or force:
            promotion = Promotion(
                id=str(ULID()),
                alias=alias,
                model=challenger.id,
                previous=reigning.id,
                verdict="promote" if verdict == "promote" else "by hand",
                evidence=comparison.as_dict() if comparison else {"missing": missing},
                by=by,
            )
            promotion = _move(tx, promotion, expected=held)
            tx.emit(
                "model.promoted",
                challenger.id,
                key=promotion.id,
                payload={"alias": alias, "previous": reigning.id, "verdict": promotion.verdict},
            )
    return PromotionOutcome(
        alias=alias,
        model=challenger.id,
        reigning=reigning.id,
        verdict=verdict,
        promotion=promotion,
        comparison=comparison,
        message=_message(challenger, alias, promotion, comparison, missing),
        next_step=comparison.next_step if comparison and not promotion else None,
    )


def untuned(ws: Workspace, model: Model) -> Model:
    """The model to compare with before there is a champion: the base at the start of the model's lineage.

    Models in between that were never promoted set no standard, since they may be worse than the base. A model that
    was not fine-tuned here is compared with the setting `base_model`.
    """
    if model.run is None:
        return models.base_model(ws, ws.settings.base_model)
    with ws.read() as reader:
        first = evaluation.lineage(reader, model)[-1]
    if first.run is not None:
        raise UnknownRecord(
            f"{first.base}, the base of {_short(model)}, is no longer in this workspace, so there is nothing to "
            "compare it with: promote it with --force, or train again"
        )
    return first


def _no_better_on_val(
    ws: Workspace, challenger: Model, reigning: Model, *, dataset: str | None, progress: Progress | None
) -> str | None:
    """Why a challenger is not worth an attempt on the test set; None if it is, or if val is too small to tell.

    If the challenger is compared with its own base, the val scores of its training run are enough.
    """
    with ws.read() as reader:
        run = reader.find(Run, challenger.run) if challenger.run else None
    if run and run.base == reigning.id:
        base, best = (run.progress.get(name) or {} for name in ("base", "best"))
        if best and best.get("step") == 0:
            return "training found no gain on val, so its weights are those of its base"
        before, after = base.get("wer"), best.get("wer")
        if before is not None and after is not None:
            if after <= before:
                return None
            return f"it is no better on val (WER {percent(before)} -> {percent(after)} in training)"
    frozen = datasets.find(ws, dataset)
    rows = datasets.rows(ws, frozen.id, "val")
    if len(rows) < ws.settings.promote_min_utterances or any(row.kind != "reference" for row in rows):
        return None
    reigned, challenged = (
        one.scores for one in _measured(ws, reigning, challenger, dataset=frozen.id, split="val", progress=progress)
    )
    if challenged["errors"] < reigned["errors"] or not reigned["errors"]:
        return None
    return (
        f"it is no better on val (WER {percent(reigned['wer'])} -> {percent(challenged['wer'])}, "
        f"{reigned['utterances']} utterances)"
    )


def _attempt(ws: Workspace, tx: Transaction, findings: Findings) -> Comparison:
    """Judge at the ledger's limit and charge the attempt; the same models on the same test are charged once."""
    ledger.lock(tx)  # until the transaction ends, so that no two attempts get the same level
    error = 1 - ws.settings.promote_confidence
    dataset, split = findings.challenger.dataset, findings.challenger.split
    charged = ledger.charge(tx, error, key=findings.key, dataset=dataset, split=split)
    comparison = findings.judged(charged.limits, ws.settings)
    keys = (comparison.challenger_evaluation, comparison.champion_evaluation, comparison.verdict)
    tx.emit(
        "model.compared",
        comparison.challenger,
        key=":".join((*keys, comparison.general) if comparison.general else keys),
        payload=comparison.as_dict(),
    )
    if comparison.utterances >= ws.settings.promote_min_utterances:  # with fewer, nothing can be promoted
        ledger.enter(
            tx,
            charged,
            model=comparison.challenger,
            champion=comparison.champion,
            dataset=dataset,
            p=comparison.chance,
            promoted=comparison.verdict == "promote",
        )
    return comparison


def _evidence(
    ws: Workspace,
    challenger: Model,
    reigning: Model,
    *,
    dataset: str | None,
    general: str | None,
    force: bool,
    progress: Progress | None,
) -> tuple[Findings | None, str | None]:
    """Measure and compare both models; with `force`, failing that, the reason why there is no evidence."""
    if challenger.id == reigning.id:
        return None, "the model is its own predecessor, so there is nothing to compare"
    try:
        if general and datasets.find(ws, general).id == datasets.find(ws, dataset).id:
            raise UsageError(
                f"dataset {general} cannot be both the test set and the general set: "
                "name the test dataset with --dataset"
            )
        # Models are judged as they are served: the model's own files or their conversion, with the workspace's
        # decoding, which names the engine.
        served = zip(evaluation.as_served(ws, reigning), evaluation.as_served(ws, challenger), strict=True)
        (reigned, challenged), *others = (
            _measured(ws, reigning, challenger, dataset=dataset, decodings=pair, progress=progress)
            for pair in dict.fromkeys(served)
        )
        besides = _measured(ws, reigning, challenger, dataset=general, progress=progress)[::-1] if general else None
    except UsageError as error:
        if not force:
            raise
        return None, str(error)
    return find(ws, challenged, reigned, general=besides, engines=[pair[::-1] for pair in others]), None


def _measured(
    ws: Workspace,
    reigning: Model,
    challenger: Model,
    *,
    dataset: str | None,
    decodings: tuple[Decoding | None, Decoding | None] = (None, None),
    split: Split = "test",
    progress: Progress | None,
) -> tuple[Evaluation, Evaluation]:
    """Evaluate both models on a split of a dataset, reusing stored evaluations."""
    reigned, challenged = (
        evaluation.measure(
            ws, model.id, dataset=dataset, split=split, decoding=decoding, progress=progress, writing=ws.transaction
        )
        for model, decoding in zip((reigning, challenger), decodings, strict=True)
    )
    return reigned, challenged


def rollback(ws: Workspace, *, alias: str = CHAMPION, by: str = "cli") -> Promotion:
    """Return an alias to the model that held it before. A second rollback undoes the first.

    Raises UnknownRecord if the alias has never been assigned.
    """
    with ws.completion() as tx:
        _lock(tx, alias)
        held = _held(tx, alias)
        if held is None:
            raise UnknownRecord(
                f"no model is {alias} yet, so there is nothing to roll back to; `voxloop model list` shows all models"
            )
        if held.previous is None:
            raise UnknownRecord(
                f"{_short(held.model)} is the first {alias}, so there is no earlier one to roll back to"
            )
        before = tx.get(Model, held.previous)
        promotion = Promotion(
            id=str(ULID()),
            alias=alias,
            model=before.id,
            previous=held.model,
            verdict="rollback",
            evidence={"of": held.id},
            by=by,
        )
        promotion = _move(tx, promotion, expected=held)
        tx.emit("model.rolled_back", before.id, key=promotion.id, payload={"alias": alias, "previous": held.model})
        return promotion


def champion(ws: Workspace, alias: str = CHAMPION) -> Model | None:
    """The model that an alias names; None if it has never been assigned."""
    with ws.read() as reader:
        held = reader.connection.execute(sa.select(tables.alias.c.model).where(tables.alias.c.name == alias)).scalar()
        return reader.get(Model, held) if held else None


def history(ws: Workspace, alias: str | None = None) -> list[Promotion]:
    """Every promotion and rollback of an alias (None: of all aliases), oldest first."""
    with ws.read() as reader:
        return reader.all(Promotion, *([tables.promotion.c.alias == alias] if alias else []))


def attempts(ws: Workspace) -> list[ledger.Attempt]:
    """Every attempt charged to the ledger, oldest first, with its p-value and limit."""
    with ws.read() as reader:
        return ledger.attempts(reader)


def comparisons(ws: Workspace, model: str | None = None) -> list[Comparison]:
    """Every comparison that the gate judged (None: of all models), oldest first, promoted or not."""
    e = tables.event.c
    statement = sa.select(e.payload).where(e.type == "model.compared", *([e.subject == model] if model else []))
    with ws.read() as reader:
        payloads = reader.connection.execute(statement.order_by(e.seq)).scalars().all()
    return [Comparison.from_dict(payload) for payload in payloads]


def previous_alias(alias: str) -> str:
    """The alias of the model that held `alias` before: `previous` for the champion."""
    return "previous" if alias == CHAMPION else f"{alias}-previous"


def _check_alias(alias: str) -> None:
    if not alias.replace("-", "").replace("_", "").isalnum() or "previous" in alias or alias == models.STARTER:
        raise UsageError(
            f"alias {alias!r} is not allowed: use letters, digits, - and _, and neither `starter` nor `previous`, "
            "which are reserved"
        )


def _held(reader: Reader, alias: str) -> Promotion | None:
    """The promotion that set an alias to its current model."""
    id = reader.connection.execute(sa.select(tables.alias.c.promotion).where(tables.alias.c.name == alias)).scalar()
    return reader.get(Promotion, id) if id else None


def _lock(tx: Transaction, alias: str) -> None:
    """Lock an alias until this transaction ends, even one that has no row yet."""
    tx.lock(f"alias {alias}")


def _move(tx: Transaction, promotion: Promotion, *, expected: Promotion | None) -> Promotion:
    """Write a promotion and update both aliases. Raises ConflictError if the alias moved in the meantime."""
    _lock(tx, promotion.alias)
    held = _held(tx, promotion.alias)
    if held != expected:
        raise ConflictError(
            f"{promotion.alias} changed while this model was being judged"
            + (f" (to {_short(held.model)}, by {held.by})" if held else "")
            + ": check `voxloop model list` and try again"
        )
    tx.add(promotion)
    named = {promotion.alias: promotion.model, previous_alias(promotion.alias): promotion.previous}
    for name, model in named.items():
        tx.connection.execute(sa.delete(tables.alias).where(tables.alias.c.name == name))
        if model:
            row = {"name": name, "model": model, "promotion": promotion.id}
            tx.connection.execute(sa.insert(tables.alias).values(row))
    return tx.get(Promotion, promotion.id)


def _short(model: Model | str) -> str:
    """A model's short id for messages; `Reader.get` accepts it."""
    id = model.id if isinstance(model, Model) else model
    return f"model {id.removeprefix('sha256-')[:12]}"


def _message(
    challenger: Model, alias: str, promotion: Promotion | None, comparison: Comparison | None, missing: str | None
) -> str:
    why = " ".join(comparison.reasons) if comparison else missing
    if promotion is None:
        return (
            f"{_short(challenger)} was not made {alias} ({comparison.verdict if comparison else 'no evidence'}): {why}"
        )
    how = "" if promotion.verdict == "promote" else " (by hand)"
    return f"{_short(challenger)} is now {alias}{how}: {why}"
