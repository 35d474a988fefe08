"""a personal vocabulary; recordings without speech are told of"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "vocabulary",
        sa.Column("term", sa.String, nullable=False),
        sa.Column("language", sa.String, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("term", "language", name="pk_vocabulary"),
    )
    # The recordings that were cut into nothing before there was an event for that.
    op.execute(
        "INSERT INTO event (id, created, type, subject, payload, published)"
        " SELECT 'recording.speechless:' || r.id, e.created, 'recording.speechless', r.id, e.payload, e.published"
        " FROM recording r JOIN event e ON e.id = 'recording.segmented:' || r.id"
        " WHERE NOT EXISTS (SELECT 1 FROM utterance u WHERE u.recording = r.id)"
    )


def downgrade() -> None:
    op.execute("DELETE FROM event WHERE type = 'recording.speechless'")
    op.drop_table("vocabulary")
