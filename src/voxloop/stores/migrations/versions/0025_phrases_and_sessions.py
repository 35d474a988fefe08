"""phrases to read aloud, what was trained on elsewhere, and indexes for a session's recordings and a reviewer's decisions"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "phrase",
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("language", "place", name=op.f("pk_phrase")),
    )
    op.create_table(
        "trained_elsewhere",
        sa.Column("utterance", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["utterance"], ["utterance.id"], name=op.f("fk_trained_elsewhere_utterance"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("utterance", name=op.f("pk_trained_elsewhere")),
    )
    op.add_column("capture", sa.Column("phrase", sa.Text()))
    with op.batch_alter_table("recording") as batch:
        batch.create_index(
            "ix_recording_session",
            ["session"],
            sqlite_where=sa.text("session IS NOT NULL"),
            postgresql_where=sa.text("session IS NOT NULL"),
        )
    with op.batch_alter_table("review_decision") as batch:
        batch.create_index("ix_review_decision_by_created", ["by", "created", "kind", "seconds"])


def downgrade() -> None:
    with op.batch_alter_table("review_decision") as batch:
        batch.drop_index("ix_review_decision_by_created")
    with op.batch_alter_table("recording") as batch:
        batch.drop_index("ix_recording_session")
    with op.batch_alter_table("capture") as batch:
        batch.drop_column("phrase")
    op.drop_table("trained_elsewhere")
    op.drop_table("phrase")
