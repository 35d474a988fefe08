"""Alembic's entry point: runs migrations on the catalog's connection."""

import sqlalchemy as sa
from alembic import context

from voxloop.stores.tables import metadata

# Text columns that are not compared by bytes.
LINGUISTIC = sa.text("""
    SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns AS c
    JOIN information_schema.tables AS t USING (table_schema, table_name)
    WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
        AND c.data_type IN ('character varying', 'text') AND c.collation_name IS DISTINCT FROM 'C'
    ORDER BY c.table_name, c.ordinal_position
""")


def compare_by_bytes(connection: sa.Connection) -> None:
    """Make PostgreSQL sort text as SQLite and Python do.

    Pages then have the same order everywhere, id prefixes are found by index, and no index breaks when the system's
    collation rules change (https://www.postgresql.org/docs/current/collation.html).
    """
    for table, column, type in connection.execute(LINGUISTIC).all():
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ALTER "{column}" TYPE {type} COLLATE "C"')


connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
# Everything runs in the caller's transaction, so nobody sees a partial schema.
context.run_migrations()
if connection.dialect.name == "postgresql":
    compare_by_bytes(connection)
