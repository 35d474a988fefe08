"""what is wanted of a run, and which run it was tried again from"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("wanted", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("retry_of", sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("retry_of")
        batch_op.drop_column("wanted")
