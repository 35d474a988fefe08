"""how a text was decoded: language, no-speech probability, guards and temperature of a transcript"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("transcript", schema=None) as batch_op:
        batch_op.add_column(sa.Column("language", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("language_probability", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("no_speech", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("guards", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("temperature", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("transcript", schema=None) as batch_op:
        for column in ("temperature", "guards", "no_speech", "language_probability", "language"):
            batch_op.drop_column(column)
