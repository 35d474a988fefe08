"""when a job was claimed, so that the time that each step takes is known"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("claimed", sa.Double))


def downgrade() -> None:
    with op.batch_alter_table("job") as batch:
        batch.drop_column("claimed")
