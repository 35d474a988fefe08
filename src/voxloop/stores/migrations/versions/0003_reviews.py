"""who decided what about which text, and whose turn an utterance is"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "review_decision",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("utterance", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("transcript", sa.String(), nullable=True),
        sa.Column("replaced", sa.String(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("undoes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(
            ["utterance"], ["utterance.id"], name=op.f("fk_review_decision_utterance"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_review_decision")),
    )
    with op.batch_alter_table("review_decision") as batch:
        batch.create_index(batch.f("ix_review_decision_utterance"), ["utterance"], unique=False)
    op.create_table(
        "review_turn",
        sa.Column("utterance", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=True),
        sa.Column("taken", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("seen", sa.String(), nullable=True),
        sa.Column("shown", sa.String(), nullable=True),
        sa.Column("skipped", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["utterance"], ["utterance.id"], name=op.f("fk_review_turn_utterance"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("utterance", name=op.f("pk_review_turn")),
    )


def downgrade() -> None:
    op.drop_table("review_turn")
    op.drop_table("review_decision")
