"""usable speech, automatic runs, and the reviews that they ask for"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sample",
        sa.Column("utterance", sa.String(), nullable=False),
        sa.Column("recording", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("transcript", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("cycle", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["utterance"], ["utterance.id"], name=op.f("fk_sample_utterance"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("utterance", name=op.f("pk_sample")),
    )
    with op.batch_alter_table("sample") as batch:
        batch.create_index(
            batch.f("ix_sample_kind_cycle_recording"), ["kind", "cycle", "recording", "seconds"], unique=False
        )
    op.create_table(
        "review_request",
        sa.Column("utterance", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("cycle", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["utterance"], ["utterance.id"], name=op.f("fk_review_request_utterance"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("utterance", name=op.f("pk_review_request")),
    )
    op.create_table(
        "cycle",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("hours", sa.Double(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("verdict", sa.String(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("needed", sa.Integer(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cycle")),
    )
    with op.batch_alter_table("cycle") as batch:
        batch.create_index(batch.f("ix_cycle_state"), ["state"], unique=False)
    # Events of before start no job of the new step; the orchestrator looks at what is there once.
    upkeep = sa.table("upkeep", sa.column("name"), sa.column("done"), sa.column("until"))
    op.bulk_insert(upkeep, [{"name": "jobs of sample", "done": 0.0, "until": time.time()}])


def downgrade() -> None:
    op.execute("DELETE FROM upkeep WHERE name = 'jobs of sample'")
    for table in ("cycle", "review_request", "sample"):
        op.drop_table(table)
