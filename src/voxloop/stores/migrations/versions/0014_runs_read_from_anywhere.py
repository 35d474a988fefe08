"""metrics, log and newest checkpoint of a run, for other machines"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_metric",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("measured", sa.Boolean(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name=op.f("fk_run_metric_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "line", name=op.f("pk_run_metric")),
    )
    op.create_table(
        "run_log",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name=op.f("fk_run_log_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "start", name=op.f("pk_run_log")),
    )
    op.create_table(
        "run_folder",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("home", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name=op.f("fk_run_folder_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_run_folder")),
    )


def downgrade() -> None:
    for table in ("run_folder", "run_log", "run_metric"):
        op.drop_table(table)
