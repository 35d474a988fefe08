"""names that people give to models"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("name", sa.String))
    op.create_index("ix_model_name", "model", ["name"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_model_name", "model")
    with op.batch_alter_table("model") as batch:
        batch.drop_column("name")
