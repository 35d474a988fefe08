"""the hash of a recording's audio after a stretch of it was erased"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recording", sa.Column("remains", sa.String))


def downgrade() -> None:
    with op.batch_alter_table("recording") as batch:
        batch.drop_column("remains")
