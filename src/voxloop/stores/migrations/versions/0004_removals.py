"""what was forgotten: a table of removals, and marks on datasets and models"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removal",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("pending", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removal")),
    )
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("manifest", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("forgotten", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.add_column(sa.Column("forgotten", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.drop_column("forgotten")
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.drop_column("forgotten")
        batch_op.drop_column("manifest")
    op.drop_table("removal")
