-- As in ../postgres.

-- The refresh that brought the grant: which refresh token was presented, and when that was claimed.
-- Two grants with the same parent are siblings, and the one asked for later is kept.
ALTER TABLE grants ADD COLUMN parent_hash TEXT;
ALTER TABLE grants ADD COLUMN asked_at INTEGER;

-- Attempts from this generation that ended without a word: a process died over them.
ALTER TABLE grants ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;

-- Received grants whose place was taken. They are tried when the grant that took it is refused.
CREATE TABLE escrow (
    id TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    -- The generation that it wanted; what is sealed is bound to it.
    generation INTEGER NOT NULL,
    access TEXT NOT NULL,
    refresh TEXT NOT NULL,
    refresh_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    parent_hash TEXT,
    asked_at INTEGER,
    put_at INTEGER NOT NULL
) STRICT;

CREATE INDEX escrow_by_connection ON escrow (connection_id);
