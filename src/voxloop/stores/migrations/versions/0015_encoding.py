"""how a recording's file held its audio: codec, rate, channels"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recording", sa.Column("encoding", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    with op.batch_alter_table("recording") as batch:
        batch.drop_column("encoding")
