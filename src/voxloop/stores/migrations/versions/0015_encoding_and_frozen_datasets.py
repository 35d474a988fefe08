"""how a recording's file held its audio; what told of a built dataset is named `dataset.frozen`"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recording", sa.Column("encoding", sa.JSON(none_as_null=True)))
    # `dataset.ready` means since that enough hours are there, which would start a run.
    op.execute(
        "UPDATE event SET type = 'dataset.frozen', id = replace(id, 'dataset.ready:', 'dataset.frozen:')"
        " WHERE type = 'dataset.ready'"
    )


def downgrade() -> None:
    with op.batch_alter_table("recording") as batch:
        batch.drop_column("encoding")
