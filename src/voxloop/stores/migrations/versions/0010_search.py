"""an index of all texts in SQLite, and how sure the machine is of an utterance beside it"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

PLACE = (sa.text("priority DESC"), "id")
DATED = (*PLACE, "ingested")
NARROW = ("status", "speaker", "language", *PLACE)
BEFORE: dict[str, tuple[Any, ...]] = {
    "ix_utterance_listed": DATED,
    "ix_utterance_status_listed": ("status", *DATED),
    "ix_utterance_speaker_listed": ("speaker", *DATED),
    "ix_utterance_language_listed": ("language", *DATED),
    "ix_utterance_ingested_listed": ("ingested", *NARROW),
}
AFTER = {name: (*columns, "confidence") for name, columns in BEFORE.items()}
SURE = sa.text("confidence IS NOT NULL")

FILL = """
UPDATE utterance SET confidence = (
    SELECT t.confidence FROM transcript AS t
    WHERE t.utterance = utterance.id AND t.kind IN ('clean', 'hypothesis')
    ORDER BY t.kind, t.created DESC, t.id DESC LIMIT 1
)
"""

# No texts in it, no places in the texts: a tenth of the size. Numbers of its own, since VACUUM may change rowids.
INDEX = """
CREATE VIRTUAL TABLE transcript_text USING fts5(text, content='', columnsize=0, detail='none', tokenize='trigram')
"""
TRIGRAMS = "CREATE VIRTUAL TABLE transcript_trigram USING fts5vocab(transcript_text, instance)"
PADDED = "char(10) || char(10)"
TRIGGERS = {
    "transcript_text_added": f"""
AFTER INSERT ON transcript BEGIN
    UPDATE transcript SET number = (SELECT coalesce(max(number), 0) + 1 FROM transcript) WHERE rowid = new.rowid;
    INSERT INTO transcript_text(rowid, text)
    SELECT number, text || {PADDED} FROM transcript WHERE rowid = new.rowid;
END""",
    "transcript_text_removed": f"""
AFTER DELETE ON transcript BEGIN
    INSERT INTO transcript_text(transcript_text, rowid, text) VALUES ('delete', old.number, old.text || {PADDED});
END""",
    "transcript_text_changed": f"""
AFTER UPDATE OF text ON transcript BEGIN
    INSERT INTO transcript_text(transcript_text, rowid, text) VALUES ('delete', old.number, old.text || {PADDED});
    INSERT INTO transcript_text(rowid, text) VALUES (new.number, new.text || {PADDED});
END""",
}


def upgrade() -> None:
    for name in BEFORE:
        op.drop_index(name, "utterance")
    op.add_column("utterance", sa.Column("confidence", sa.Double(), nullable=True))
    op.execute(FILL)
    for name, columns in AFTER.items():
        op.create_index(name, "utterance", list(columns))
    op.create_index(
        "ix_utterance_confidence_listed",
        "utterance",
        ["confidence", *NARROW, "ingested"],
        sqlite_where=SURE,
        postgresql_where=SURE,
    )
    op.add_column("transcript", sa.Column("number", sa.BigInteger(), nullable=True))
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        op.execute("UPDATE transcript SET number = rowid")
    op.create_index("ix_transcript_number", "transcript", ["number"], unique=True)
    if sqlite:
        op.execute(INDEX)
        op.execute(TRIGRAMS)
        op.execute(f"INSERT INTO transcript_text(rowid, text) SELECT number, text || {PADDED} FROM transcript")
        op.execute("INSERT INTO transcript_text(transcript_text) VALUES ('optimize')")
        for name, body in TRIGGERS.items():
            op.execute(f"CREATE TRIGGER {name} {body.strip()}")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name in TRIGGERS:
            op.execute(f"DROP TRIGGER {name}")
        op.execute("DROP TABLE transcript_trigram")
        op.execute("DROP TABLE transcript_text")
    op.drop_index("ix_transcript_number", "transcript")
    with op.batch_alter_table("transcript", schema=None) as batch_op:
        batch_op.drop_column("number")
    op.drop_index("ix_utterance_confidence_listed", "utterance")
    for name in AFTER:
        op.drop_index(name, "utterance")
    with op.batch_alter_table("utterance", schema=None) as batch_op:
        batch_op.drop_column("confidence")
    for name, columns in BEFORE.items():
        op.create_index(name, "utterance", list(columns))
