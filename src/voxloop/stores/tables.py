"""The catalog's tables, for SQLite and PostgreSQL; `migrations/` creates and upgrades them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)


class now_s(FunctionElement[float]):
    """The database's time in seconds since the epoch, so that leases do not depend on workers' clocks."""

    type = sa.Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


NUMBERED = "utterance number"  # in `upkeep`: the highest number of any deleted utterance


class next_number(FunctionElement[int]):
    """The number for a new utterance. Numbers ascend and are never reused."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(next_number, "sqlite")
def _next_number_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    # SQLite has one writer at a time, so nobody else can get the same number.
    gone = f"(SELECT until FROM upkeep WHERE name = '{NUMBERED}')"
    return f"(SELECT max(coalesce(max(number), 0), coalesce({gone}, 0)) + 1 FROM utterance)"


@compiles(next_number, "postgresql")
def _next_number_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "nextval('utterance_number')"


def _created() -> sa.Column[float]:
    return sa.Column("created", sa.Double, nullable=False)


recording = sa.Table(
    "recording",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("speaker", sa.String),
    sa.Column("language", sa.String),
    sa.Column("consent", sa.String),
    sa.Column("session", sa.String),
    sa.Column("text", sa.Text),
    sa.Column("segments", sa.JSON),
    sa.Column("quality", sa.JSON),
    sa.Column("encoding", sa.JSON(none_as_null=True)),
    sa.Column("remains", sa.String),
    # For listings and sums. It grows at its end; another index in random order would cost ingest a page write per row.
    sa.Index("ix_recording_created_samples", "created", "samples"),
    sa.Index(
        "ix_recording_session",
        "session",
        sqlite_where=sa.text("session IS NOT NULL"),
        postgresql_where=sa.text("session IS NOT NULL"),
    ),
)

# The recording that a file contained when last read, so that unchanged files are not decoded again.
source_file = sa.Table(
    "source_file",
    metadata,
    sa.Column("path", sa.String, primary_key=True),  # absolute
    sa.Column("channel", sa.String, primary_key=True),  # "mix", or "0", "1", ... if the channels were split
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("recording", sa.ForeignKey("recording.id", ondelete="CASCADE"), nullable=False, index=True),
)

_LISTED = (sa.text("priority DESC"), "id", "ingested", "confidence")

utterance = sa.Table(
    "utterance",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("recording", sa.ForeignKey("recording.id"), nullable=False, index=True),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("end", sa.BigInteger, nullable=False),
    sa.Column("speaker", sa.String),
    sa.Column("language", sa.String),
    sa.Column("split", sa.String),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("quality", sa.JSON),
    sa.Column("priority", sa.Double, nullable=False, default=0.0),
    sa.Column("doubt", sa.String),
    # `created` of its recording, copied here for the indexes. Set by `Writer.add`; not part of the record.
    sa.Column("ingested", sa.Double, nullable=False, server_default="0"),
    # Confidence of its machine text (`machine_confidence`), for the same reason and also set there.
    sa.Column("confidence", sa.Double),
    # A small integer id, which other programs' APIs expect; not part of the record. Its index grows at its end.
    sa.Column("number", sa.BigInteger, default=next_number()),
    sa.Index("ix_utterance_number", "number", unique=True),
    # Each page of a listing is read in order from one of these, whatever the number of utterances. They include the
    # columns that are filtered on the way: dates and confidence.
    sa.Index("ix_utterance_listed", *_LISTED),
    sa.Index("ix_utterance_status_listed", "status", *_LISTED),
    sa.Index("ix_utterance_speaker_listed", "speaker", *_LISTED),
    sa.Index("ix_utterance_language_listed", "language", *_LISTED),
    # If few utterances match a date or confidence range, a page is selected and sorted from one of these.
    sa.Index("ix_utterance_ingested_listed", "ingested", "status", "speaker", "language", *_LISTED[:2], "confidence"),
    sa.Index(
        "ix_utterance_confidence_listed",
        *("confidence", "status", "speaker", "language", *_LISTED[:2], "ingested"),
        sqlite_where=sa.text("confidence IS NOT NULL"),
        postgresql_where=sa.text("confidence IS NOT NULL"),
    ),
    sa.Index("ix_utterance_status", "status"),  # for counting: a tenth of the size of the others
)

transcript = sa.Table(
    "transcript",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("utterance", sa.ForeignKey("utterance.id"), nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("confidence", sa.Double),
    sa.Column("words", sa.JSON),
    sa.Column("language", sa.String),
    sa.Column("language_probability", sa.Double),
    sa.Column("no_speech", sa.Double),
    sa.Column("guards", sa.JSON),
    sa.Column("temperature", sa.Double),
    # Its row id in the text index (`stores.search`), set by an SQLite trigger; not part of the record.
    sa.Column("number", sa.BigInteger),
    sa.Index("ix_transcript_number", "number", unique=True),
    sa.Index("ix_transcript_utterance_kind_created", "utterance", "kind", "created"),
    sa.Index("ix_transcript_kind", "kind"),
)


MACHINE_TEXTS = ("clean", "hypothesis")  # in order of preference


def machine_confidence() -> sa.ScalarSelect[float | None]:
    """The confidence of an utterance's newest machine text, as a subquery for statements on the utterance table."""
    text = transcript.alias()
    return (
        sa.select(text.c.confidence)
        .where(text.c.utterance == utterance.c.id, sa.or_(*(text.c.kind == kind for kind in MACHINE_TEXTS)))
        .order_by(text.c.kind, text.c.created.desc(), text.c.id.desc())
        .limit(1)
        .correlate(utterance)
        .scalar_subquery()
    )


dataset = sa.Table(
    "dataset",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("filters", sa.JSON, nullable=False),
    sa.Column("clips", sa.JSON, nullable=False),
    sa.Column("hours", sa.JSON, nullable=False),
    sa.Column("excluded", sa.JSON, nullable=False),
    sa.Column("parent", sa.String),
    sa.Column("manifest", sa.String),
    sa.Column("forgotten", sa.Integer, nullable=False, server_default="0"),
)

# Utterances on which another program's model was trained before they were imported.
trained_elsewhere = sa.Table(
    "trained_elsewhere",
    metadata,
    sa.Column("utterance", sa.ForeignKey("utterance.id", ondelete="CASCADE"), primary_key=True),
)

# The content of datasets, for queries such as "which datasets used this speaker". The manifest blob is the truth.
dataset_utterance = sa.Table(
    "dataset_utterance",
    metadata,
    sa.Column("dataset", sa.ForeignKey("dataset.id"), primary_key=True),
    sa.Column("utterance", sa.ForeignKey("utterance.id"), primary_key=True, index=True),
    sa.Column("transcript", sa.String, nullable=False),
    sa.Column("split", sa.String, nullable=False),
)

run = sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("family", sa.String, nullable=False),
    sa.Column("method", sa.String, nullable=False),
    sa.Column("recipe", sa.JSON, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("model", sa.String),
    sa.Column("finished", sa.Double),
    sa.Column("wanted", sa.String),
    sa.Column("retry_of", sa.String),
)

# The lines of a run's metrics.jsonl, so that the run can be followed from any machine.
run_metric = sa.Table(
    "run_metric",
    metadata,
    sa.Column("run", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),  # starting at 1
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column(
        "measured", sa.Boolean, nullable=False
    ),  # whether it contains an evaluation; such lines are never thinned out
    sa.Column("values", sa.JSON, nullable=False),
)

# The end of a run's train.log, in pieces of complete lines.
run_log = sa.Table(
    "run_log",
    metadata,
    sa.Column("run", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),  # offset of its first byte in the log
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# A run's newest folder, and the manifest of its newest checkpoint in the blob store.
run_folder = sa.Table(
    "run_folder",
    metadata,
    sa.Column("run", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("home", sa.String, nullable=False),  # host:path#token of that folder; empty: no folder to continue from
    sa.Column("step", sa.Integer),  # of the checkpoint
    sa.Column("files", sa.JSON, nullable=False),  # name in the folder -> {"sha256": "sha256-<hex>", "size": bytes}
    sa.Column("config", sa.JSON, nullable=False),  # the machine-independent part of training_config.json
    sa.Column("changed", sa.Double, nullable=False),
)

model = sa.Table(
    "model",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("family", sa.String, nullable=False),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("where", sa.String, nullable=False),
    sa.Column("run", sa.String),
    sa.Column("files", sa.JSON, nullable=False),
    sa.Column("forgotten", sa.Integer, nullable=False, server_default="0"),
    sa.Column("name", sa.String),
    sa.Index("ix_model_name", "name", unique=True),
)

evaluation = sa.Table(
    "evaluation",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("model", sa.String, nullable=False, index=True),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("split", sa.String, nullable=False),
    sa.Column("decoding", sa.JSON, nullable=False),
    sa.Column("normaliser", sa.String, nullable=False),
    sa.Column("scores", sa.JSON, nullable=False),
    sa.Column("hypotheses", sa.String, nullable=False),
)

promotion = sa.Table(
    "promotion",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    _created(),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("previous", sa.String),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("by", sa.String, nullable=False),
)

alias = sa.Table(
    "alias",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("promotion", sa.String, nullable=False),
)

event = sa.Table(
    "event",
    metadata,
    # SQLite counts up by itself only in a column declared INTEGER.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    _created(),
    sa.Column("type", sa.String, nullable=False, index=True),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    # Published to the bus; a flag, since PostgreSQL commits out of order and a cursor would skip rows.
    sa.Column("published", sa.Boolean, nullable=False, default=False),
)

# Literals instead of parameters, so that the query planner can use partial indexes.
READY, LEASED, DONE, DEAD = (
    sa.literal_column(f"'{state}'", sa.String) for state in ("ready", "leased", "done", "dead")
)

# ready -> leased -> done; leased -> ready (failed, released, or the lease expired); leased -> dead (last attempt);
# dead -> ready (retried)
job = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.String, primary_key=True),  # "<step>:<event id>"
    _created(),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("event", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),  # higher is claimed first
    sa.Column("cost_s", sa.Double, nullable=False, server_default="0"),  # seconds of audio behind it
    sa.Column("token", sa.String),  # of the claim that holds or finished it
    sa.Column("not_before", sa.Double, nullable=False),  # if ready: earliest time to claim it
    sa.Column("lease_until", sa.Double),  # if leased: when another worker may take it
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("finished", sa.Double),
    # One small index per state. Every row is in exactly one of them.
    *(
        sa.Index(f"ix_job_{state}", *columns, sqlite_where=where, postgresql_where=where)
        for state, columns, where in (
            # Ends with `state`, so that counting needs only the index.
            ("ready", ("step", sa.text("priority DESC"), "not_before", "id", "state"), sa.text("state = 'ready'")),
            ("leased", ("lease_until", "step"), sa.text("state = 'leased'")),
            ("done", ("finished",), sa.text("state = 'done'")),
            ("dead", ("finished", "step"), sa.text("state = 'dead'")),
        )
    ),
)

# Recurring maintenance, by name: when any process last did it, and up to which time data has been removed.
upkeep = sa.Table(
    "upkeep",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("done", sa.Double, nullable=False, server_default="0"),
    sa.Column("until", sa.Double, nullable=False, server_default="0"),
)

vector = sa.Table(
    "vector",
    metadata,
    sa.Column("id", sa.String, primary_key=True),  # utterance id
    sa.Column(
        "space", sa.String, primary_key=True
    ),  # the model that made them; only vectors of one space are comparable
    sa.Column("values", sa.LargeBinary, nullable=False),  # little-endian float32
)

# One row per reviewer's decision, never changed; undoing one adds another decision that refers to it.
review_decision = sa.Table(
    "review_decision",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _created(),
    sa.Column("utterance", sa.ForeignKey("utterance.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),  # save, accept, bulk accept, reject, skip, import, undo
    sa.Column("by", sa.String, nullable=False),
    sa.Column("before", sa.String, nullable=False),  # the utterance's previous status
    sa.Column("transcript", sa.String),  # the new reference
    sa.Column("replaced", sa.String),  # the reference withdrawn for it, if the new one has an earlier time
    sa.Column("reason", sa.Text),
    sa.Column("seconds", sa.Double),  # from taking the utterance to deciding
    sa.Column("undoes", sa.BigInteger().with_variant(sa.Integer, "sqlite")),  # seq of another decision
    # Holds all that a reviewer's statistics need, in the order in which sessions are counted.
    sa.Index("ix_review_decision_by_created", "by", "created", "kind", "seconds"),
)

# Reservations of utterances for reviewers. No row: not reserved and not skipped.
review_turn = sa.Table(
    "review_turn",
    metadata,
    sa.Column("utterance", sa.ForeignKey("utterance.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("by", sa.String),
    sa.Column("taken", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),  # reserved until then
    sa.Column("seen", sa.String),  # the reference shown to the reviewer; empty: none
    sa.Column("shown", sa.String),  # the machine text shown to the reviewer
    sa.Column("skipped", sa.Double, nullable=False),  # hidden until then; 0: not skipped
)

# One row per refused file, so that later runs and `voxloop status` can report it.
refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    _created(),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)

# Names and jargon, spelt as they should be written. An empty `language` means any.
vocabulary = sa.Table(
    "vocabulary",
    metadata,
    sa.Column("term", sa.String, primary_key=True),
    sa.Column("language", sa.String, primary_key=True),
    _created(),
)

# Audit entries of removals, without names. `pending` lists what is still to be deleted; null when finished.
removal = sa.Table(
    "removal",
    metadata,
    sa.Column("id", sa.String, primary_key=True),  # random ULID that identifies the request
    _created(),
    sa.Column("kind", sa.String, nullable=False),  # speaker or recording
    sa.Column("by", sa.String, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("datasets", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("pending", sa.JSON(none_as_null=True)),
    sa.Column("finished", sa.Double),
)

# Who may use the server besides its administrator. Only hashes of secrets are kept.
access_token = sa.Table(
    "access_token",
    metadata,
    sa.Column("id", sa.String, primary_key=True),  # ULID
    _created(),
    sa.Column("name", sa.String, nullable=False),  # of the person or program: decisions and captures carry it
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("hash", sa.String, nullable=False, unique=True),
    sa.Column("revoked", sa.Double),
)

# What a browser is signed in with (`session`), and addresses that sign one in once (`link`).
access_session = sa.Table(
    "access_session",
    metadata,
    sa.Column("hash", sa.String, primary_key=True),
    _created(),
    sa.Column("token", sa.ForeignKey("access_token.id", ondelete="CASCADE")),  # null: the administrator's
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)

# What speakers are asked to agree to. A text never changes: a new one is the next version.
consent_text = sa.Table(
    "consent_text",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    _created(),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("purposes", sa.JSON, nullable=False),
    sa.Column("by", sa.String, nullable=False),
)

# What speakers gave and withdrew, oldest first. Rows are only added; the newest one about a purpose counts.
consent = sa.Table(
    "consent",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _created(),
    sa.Column("speaker", sa.String, nullable=False, index=True),
    sa.Column("given", sa.Boolean, nullable=False),  # false: withdrawn
    sa.Column("purposes", sa.JSON, nullable=False),
    sa.Column("version", sa.ForeignKey("consent_text.version")),  # null: withdrawn without naming a text
    sa.Column("by", sa.String, nullable=False),
)

# Recordings that the server kept of what it heard; they expire unless a person reviews them.
capture = sa.Table(
    "capture",
    metadata,
    sa.Column("recording", sa.ForeignKey("recording.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("client", sa.String, nullable=False),  # the name of the token
    sa.Column("token", sa.String),  # its id; null: the administrator's
    sa.Column("version", sa.Integer),  # of the consent text that the speaker had agreed to
    sa.Column("purposes", sa.JSON, nullable=False),  # that the speaker permitted then
    sa.Column("phrase", sa.Text),  # that the speaker read aloud; null: free speech
)

# This workspace's own phrases to read aloud, by language, in the order of its list.
phrase = sa.Table(
    "phrase",
    metadata,
    sa.Column("language", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
    _created(),
    sa.Column("by", sa.String, nullable=False),
)
