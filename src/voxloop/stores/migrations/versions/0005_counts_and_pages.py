"""indexes for pages of a listing in any of its filters, and for the counts of the status page"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PLACE = (sa.text("priority DESC"), "id")
INDEXES = {
    "ix_utterance_listed": ("utterance", PLACE),
    "ix_utterance_status_listed": ("utterance", ("status", *PLACE)),
    "ix_utterance_speaker_listed": ("utterance", ("speaker", *PLACE)),
    "ix_utterance_language_listed": ("utterance", ("language", *PLACE)),
    "ix_utterance_status": ("utterance", ("status",)),
    "ix_recording_samples": ("recording", ("samples",)),
    "ix_transcript_kind": ("transcript", ("kind",)),
}


def upgrade() -> None:
    op.drop_index("ix_utterance_status_priority_id", "utterance")  # replaced by ix_utterance_status_listed
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, list(columns))


def downgrade() -> None:
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.create_index("ix_utterance_status_priority_id", "utterance", ["status", "priority", "id"])
