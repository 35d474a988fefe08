"""consent of speakers, and recordings that the server kept of what it heard"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consent_text",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("purposes", sa.JSON(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_consent_text")),
    )
    op.create_table(
        "consent",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("speaker", sa.String(), nullable=False),
        sa.Column("given", sa.Boolean(), nullable=False),
        sa.Column("purposes", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["consent_text.version"], name=op.f("fk_consent_version")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_consent")),
    )
    with op.batch_alter_table("consent") as batch:
        batch.create_index(batch.f("ix_consent_speaker"), ["speaker"], unique=False)
    op.create_table(
        "capture",
        sa.Column("recording", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("purposes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["recording"], ["recording.id"], name=op.f("fk_capture_recording"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("recording", name=op.f("pk_capture")),
    )
    with op.batch_alter_table("capture") as batch:
        batch.create_index(batch.f("ix_capture_created"), ["created"], unique=False)


def downgrade() -> None:
    for table in ("capture", "consent", "consent_text"):
        op.drop_table(table)
