"""an index of the events that the bus has not published yet, and objects of an inbox that could not be moved away"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

INDEX = "ix_event_unpublished"


def upgrade() -> None:
    op.create_index(
        INDEX,
        "event",
        ["seq"],
        sqlite_where=sa.text("published = 0"),
        postgresql_where=sa.text("published = false"),
    )
    op.create_table(
        "inbox_object",
        sa.Column("url", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("url", "key", name="pk_inbox_object"),
    )


def downgrade() -> None:
    op.drop_table("inbox_object")
    op.drop_index(INDEX, "event")
