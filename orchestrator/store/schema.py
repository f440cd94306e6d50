"""The tables of the history, the same in SQLite and PostgreSQL. ``migrations`` makes them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String(32), primary_key=True),
    Column("agent_id", String(200), nullable=False),
    Column("parent_id", String(32)),  # the session that this one was forked from
    Column("home", String(32), nullable=False),  # the id of the data folder that has its files
    Column("owner", String(200)),  # the process that owns it; NULL: no process
    Column("state", String(16), nullable=False),  # live, asleep, ended
    Column("end_reason", String(32)),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float, nullable=False),
    Column("kernel_id", String(32), nullable=False),
    Column("runtime", String(64), nullable=False),
    Column("cells", Integer, nullable=False, server_default="0"),  # the number of its last cell
    Column("bytes", BigInteger, nullable=False, server_default="0"),  # of its cells; equal outputs count once
    Column("fence", BigInteger, nullable=False, server_default="0"),  # grows with each new owner
    Column("charged", String(400)),  # the quota that a place of the cluster is counted for; NULL: none
    # The home too: without it, SQLite reads all sessions of the home that have not ended.
    Index("sessions_of_agent", "agent_id", "home", "state"),
    Index("sessions_by_home", "home", "state", "last_used_at"),
    Index("sessions_by_use", "last_used_at"),
    Index("sessions_by_agents_use", "agent_id", "last_used_at"),
)
Index(
    "sessions_charged",
    sessions.c.charged,
    sqlite_where=sessions.c.owner.is_not(None),
    postgresql_where=sessions.c.owner.is_not(None),
)

cells = Table(
    "cells",
    metadata,
    Column("cell_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kernel_id", String(32), nullable=False),
    Column("code", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", String(16), nullable=False),  # "running" until it is known
    Column("result", Text, nullable=False),  # JSON, with null for each of its ``payloads``
    Column("bytes", BigInteger, nullable=False),
    Column("swept", BigInteger, nullable=False, server_default="0"),  # bytes of its outputs that retention deleted
    UniqueConstraint("session_id", "number"),
)
Index(
    "cells_running",
    cells.c.session_id,
    sqlite_where=cells.c.outcome == "running",
    postgresql_where=cells.c.outcome == "running",
)

HAS_OUTPUTS = "cells.swept = 0 AND cells.bytes > 2048"  # a query that has exactly this text uses the index
Index(
    "cells_with_outputs",
    cells.c.started_at,
    cells.c.cell_id,
    sqlite_where=text(HAS_OUTPUTS.replace("cells.", "")),
    postgresql_where=text(HAS_OUTPUTS.replace("cells.", "")),
)

payloads = Table(
    "payloads",
    metadata,
    Column("cell_id", ForeignKey("cells.cell_id", ondelete="CASCADE"), primary_key=True),
    Column("path", String(500), primary_key=True),  # JSON: the keys that lead to the text's place in the result
    Column("digest", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String(32), primary_key=True),
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("cell", Integer, nullable=False),  # the number of the last cell whose effects it has
    Column("asked_for", Boolean, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lost", Text, nullable=False),  # JSON
)

commands = Table(
    "commands",
    metadata,
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kernel_id", String(32), nullable=False),
    Column("command", Text, nullable=False),  # JSON: the arguments
    Column("shell", Boolean, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", String(16), nullable=False),  # "running" until it is known
    Column("result", Text, nullable=False),  # JSON
    Column("bytes", BigInteger, nullable=False),  # of the command and its result
)
Index(
    "commands_running",
    commands.c.session_id,
    sqlite_where=commands.c.outcome == "running",
    postgresql_where=commands.c.outcome == "running",
)

LARGE_COMMANDS = "commands.bytes > 4096"  # a query that has exactly this text uses the index
Index(
    "commands_with_outputs",
    commands.c.started_at,
    sqlite_where=text(LARGE_COMMANDS.replace("commands.", "")),
    postgresql_where=text(LARGE_COMMANDS.replace("commands.", "")),
)

agent_usage = Table(
    "agent_usage",
    metadata,
    Column("home", String(32), primary_key=True),
    Column("agent_id", String(200), primary_key=True),
    Column("bytes", BigInteger, nullable=False),  # of all its sessions' cells and checkpoints
)

home_usage = Table(
    "home_usage",
    metadata,
    Column("home", String(32), primary_key=True),
    Column("shard", Integer, primary_key=True),  # processes that write at once add to different rows
    Column("bytes", BigInteger, nullable=False),  # the sum over the shards is that of the agents' bytes
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("group_name", String(63), nullable=False),
    Column("policies", Text, nullable=False),  # JSON: the names of those it may use
    Column("rights", Text, nullable=False),  # JSON
    Column("digest", String(64), nullable=False),  # SHA-256 of the secret, which has 256 random bits
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

handles = Table(
    "handles",
    metadata,
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), primary_key=True),
    Column("group_name", String(63), nullable=False),
    Column("name", String(200), nullable=False),  # the agent's, within its group
    Column("policy", String(200), nullable=False),
    Column("image", String(300), nullable=False),  # "": the policy's
    Column("token_id", String(16), nullable=False),  # that made it; "" without tokens
    Column("environment", Text, nullable=False),  # JSON
    Column("labels", Text, nullable=False),  # JSON
    Column("expires_at", Float),
    Column("on_expiry", String(16), nullable=False),  # end, hibernate
    Index("handles_by_group", "group_name"),
    Index("handles_by_expiry", "expires_at"),
)

# In PostgreSQL alone. ``PostgresBlobs`` says what they mean.
blobs = Table(
    "blobs",
    metadata,
    Column("blob_id", String(32), primary_key=True),
    Column("name", String(600, collation="C"), nullable=False),  # byte by byte: a folder's names are a range
    Column("bytes", BigInteger),  # NULL until it is finished
    Column("kept_at", DateTime(timezone=True), nullable=False),  # by the server's clock
    Index("blobs_finished", "name", unique=True, postgresql_where=text("bytes IS NOT NULL")),
    Index("blobs_by_name", "name"),
)

blob_pieces = Table(
    "blob_pieces",
    metadata,
    Column("blob_id", ForeignKey("blobs.blob_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

cluster_key = Table(  # at most one row
    "cluster_key",
    metadata,
    Column("key_id", Integer, primary_key=True),  # 1
    Column("key", LargeBinary),  # NULL: it is in a file of each host
    Column("fingerprint", String(64), nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", String(64), primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # grows with each start, and when another node fences it
    Column("url", String(300), nullable=False),
    Column("state", String(16), nullable=False),  # up, draining, down
    Column("lease_until", Float, nullable=False),  # by the database's clock
    Column("version", String(64), nullable=False),
    Column("protocol", Integer, nullable=False),
    Column("capacity", Text, nullable=False),  # JSON
    Column("schema_known", Integer, nullable=False, server_default="11"),  # the newest that its version knows
    # By the database's clock: the end of the last outage that the node was the first to notice. The latest one counts.
    Column("answering_since", Float, nullable=False, server_default="0"),
)

identity = Table("identity", metadata, Column("database_id", String(32), primary_key=True))  # one row

schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("oldest_writer", Integer),  # a version that knows this schema may still write; NULL: one that knows all
)
