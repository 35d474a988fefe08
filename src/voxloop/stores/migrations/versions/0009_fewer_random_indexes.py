"""fewer indexes in random order: each costs an ingest of small files a page for every row"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_event_subject", "event")  # what asks for a subject asks for a type or an id
    op.drop_index("ix_recording_samples", "recording")
    op.create_index("ix_recording_created_samples", "recording", ["created", "samples"])


def downgrade() -> None:
    op.drop_index("ix_recording_created_samples", "recording")
    op.create_index("ix_recording_samples", "recording", ["samples"])
    op.create_index("ix_event_subject", "event", ["subject"])
