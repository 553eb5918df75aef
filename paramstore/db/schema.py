"""The tables and views as this version of the library reads and writes them.

Describes and never creates: `paramstore.db.migrate` brings a database to this state, and a test
compares both.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

REVISION: Final = "0002"
"""The migration that makes these tables; what the version table of a usable database says."""
VERSION_TABLE: Final = "paramstore_alembic_version"

DEDUPLICATED_FROM: Final = 65536
"""Bytes from which a blob is looked for in the whole database before it is stored again."""
CHUNK_BITS: Final = 20
"""A chunk's row id is its blob's, shifted by these, plus its place in the blob."""

# A 64-bit key; on SQLite only INTEGER is the table's own key instead of a second tree.
Id = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

scopes = Table(
    "scopes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("head_version", Id, nullable=False),
    Column("created_at", Text, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Id, primary_key=True),
    Column("scope_id", Id, ForeignKey("scopes.id"), nullable=False),
    Column("version", Id, nullable=False),
    Column("parent_id", Id),
    Column("step", Id),
    Column("created_at", Text, nullable=False),
    Column("message", Text),
    Column("kind", Text, nullable=False),
    Column("params", Id, nullable=False),
    Column("changed", Id, nullable=False),
    Column("nbytes", Id, nullable=False),
    Column("added_nbytes", Id, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("origin", Text),  # NULL in what older versions wrote
    UniqueConstraint("scope_id", "version"),
    sqlite_autoincrement=True,
)

metrics = Table(
    "metrics",
    metadata,
    Column("snapshot_id", Id, ForeignKey("snapshots.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Double),  # NULL is NaN
    sqlite_with_rowid=False,
)

tags = Table(
    "tags",
    metadata,
    Column("scope_id", Id, ForeignKey("scopes.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("snapshot_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

params = Table(
    "params",
    metadata,
    Column("id", Id, primary_key=True),
    Column("scope_id", Id, ForeignKey("scopes.id"), nullable=False),
    Column("name", Text, nullable=False),
    UniqueConstraint("scope_id", "name"),
    sqlite_autoincrement=True,
)

# No index but the key, here and on snapshot_params: a commit must only append.
param_versions = Table(
    "param_versions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("param_id", Id, nullable=False),
    Column("version", Id, nullable=False),
    Column("blob_id", Id, nullable=False),
    Column("constraint_id", Id, nullable=False),
    Column("kind", Text, nullable=False),
    Column("requires_grad", Boolean, nullable=False),
    Column("shape", Text, nullable=False),
    Column("norm", Double),
    Column("mean", Double),
    Column("std", Double),
    Column("min", Double),
    Column("max", Double),
    Column("nan_count", Id),  # NULL where no statistics were taken
    Column("inf_count", Id),
    Column("value", Text),
    Column("unconstrained", Boolean),
    sqlite_autoincrement=True,
)

snapshot_params = Table(
    "snapshot_params",
    metadata,
    Column("snapshot_id", Id, ForeignKey("snapshots.id"), primary_key=True),
    Column("param_id", Id, primary_key=True),
    Column("param_version_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

constraints = Table(
    "constraints",
    metadata,
    Column("id", Id, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("spec", Text, nullable=False),
    sqlite_autoincrement=True,
)

constraint_blobs = Table(
    "constraint_blobs",
    metadata,
    Column("constraint_id", Id, primary_key=True),
    Column("seq", Id, primary_key=True),
    Column("blob_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

blobs = Table(
    "blobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("nbytes", Id, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("shape", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index(
    "uq_blobs_digest",
    blobs.c.digest,
    unique=True,
    sqlite_where=text(f"nbytes >= {DEDUPLICATED_FROM}"),
    postgresql_where=text(f"nbytes >= {DEDUPLICATED_FROM}"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

extras = Table(
    "extras",
    metadata,
    Column("snapshot_id", Id, ForeignKey("snapshots.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("skeleton", Text, nullable=False),
    sqlite_with_rowid=False,
)

extra_blobs = Table(
    "extra_blobs",
    metadata,
    Column("snapshot_id", Id, ForeignKey("snapshots.id"), primary_key=True),
    Column("seq", Id, primary_key=True),
    Column("blob_id", Id, nullable=False),
    sqlite_with_rowid=False,
)
