"""why a dataset left an utterance's text out until a person confirms it"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("utterance", sa.Column("doubt", sa.String))


def downgrade() -> None:
    with op.batch_alter_table("utterance") as batch:
        batch.drop_column("doubt")
