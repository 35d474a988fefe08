"""jobs by priority and seconds of audio, small ids of utterances, and when pruning was done last"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES: dict[str, list[Any]] = {
    "ready": ["step", sa.text("priority DESC"), "not_before", "id", "state"],
    "leased": ["lease_until", "step"],
    "done": ["finished"],
    "dead": ["finished", "step"],
}
# In the order in which they were inserted, as far as a PostgreSQL catalog still knows it.
NUMBERS = """
UPDATE utterance SET number = counted.number FROM (
    SELECT id, row_number() OVER (ORDER BY ingested, recording, start) AS number FROM utterance
) AS counted WHERE counted.id = utterance.id
"""


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.drop_index("ix_job_state_step_run_at", "job")
    op.execute("ALTER TABLE job RENAME COLUMN run_at TO not_before")  # without batch mode, which copies the table
    op.add_column("job", sa.Column("lease_until", sa.Double(), nullable=True))
    op.add_column("job", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("job", sa.Column("cost_s", sa.Double(), nullable=False, server_default="0"))
    op.execute("UPDATE job SET lease_until = not_before, not_before = created WHERE state = 'leased'")
    for state, columns in INDEXES.items():
        where = sa.text(f"state = '{state}'")
        op.create_index(f"ix_job_{state}", "job", columns, sqlite_where=where, postgresql_where=where)
    op.add_column("utterance", sa.Column("number", sa.BigInteger(), nullable=True))
    if sqlite:
        op.execute("UPDATE utterance SET number = rowid")
    else:
        op.execute("CREATE SEQUENCE utterance_number")
        op.execute(NUMBERS)
        op.execute("SELECT setval('utterance_number', count(*) + 1, false) FROM utterance")
    op.create_index("ix_utterance_number", "utterance", ["number"], unique=True)
    op.create_table(
        "upkeep",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("done", sa.Double(), server_default="0", nullable=False),
        sa.Column("until", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_upkeep")),
    )


def downgrade() -> None:
    op.drop_table("upkeep")
    op.drop_index("ix_utterance_number", "utterance")
    op.drop_column("utterance", "number")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP SEQUENCE utterance_number")
    for state in INDEXES:
        op.drop_index(f"ix_job_{state}", "job")
    op.execute("UPDATE job SET not_before = lease_until WHERE state = 'leased'")
    for name in ("lease_until", "priority", "cost_s"):
        op.drop_column("job", name)
    op.execute("ALTER TABLE job RENAME COLUMN not_before TO run_at")
    op.create_index("ix_job_state_step_run_at", "job", ["state", "step", "run_at"])
