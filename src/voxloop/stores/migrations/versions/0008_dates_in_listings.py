"""when an utterance's recording came in, beside it: pages between dates are read off an index, too"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PLACE = (sa.text("priority DESC"), "id")
BEFORE: dict[str, tuple[Any, ...]] = {
    "ix_utterance_listed": PLACE,
    "ix_utterance_status_listed": ("status", *PLACE),
    "ix_utterance_speaker_listed": ("speaker", *PLACE),
    "ix_utterance_language_listed": ("language", *PLACE),
}
AFTER: dict[str, tuple[Any, ...]] = {name: (*columns, "ingested") for name, columns in BEFORE.items()} | {
    "ix_utterance_ingested_listed": ("ingested", "status", "speaker", "language", *PLACE)
}


def upgrade() -> None:
    op.add_column("utterance", sa.Column("ingested", sa.Double(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE utterance SET ingested = (SELECT created FROM recording WHERE recording.id = utterance.recording)"
    )
    _index(BEFORE, AFTER)


def downgrade() -> None:
    _index(AFTER, BEFORE)
    with op.batch_alter_table("utterance", schema=None) as batch_op:
        batch_op.drop_column("ingested")


def _index(old: dict[str, tuple[Any, ...]], new: dict[str, tuple[Any, ...]]) -> None:
    for name in old:
        op.drop_index(name, "utterance")
    for name, columns in new.items():
        op.create_index(name, "utterance", list(columns))
