-- The audit trail, as it was shipped from the files of the replicas.
CREATE TABLE events (
    -- The order in which records were committed: no lower one ever comes after it.
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    happened_at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    peer TEXT,
    connection TEXT,
    connection_id TEXT,
    provider TEXT,
    fingerprint TEXT,
    generation INTEGER,
    detail TEXT
) STRICT;

CREATE INDEX events_by_time ON events (happened_at);

-- One row: the last place that was given. Whoever writes events holds its lock until they commit.
CREATE TABLE events_head (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL
) STRICT;

INSERT INTO events_head VALUES (1, 0);
