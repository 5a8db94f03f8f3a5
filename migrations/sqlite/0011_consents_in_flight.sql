-- As in ../postgres.

-- Whose account the grant of a spent link is for, by the provider's id: its page shows no other one.
ALTER TABLE consent_links ADD COLUMN account_id TEXT;

-- Codes that were taken and may bring a grant until they are exchanged, or until `ends_at` where a
-- crash cut that off: nobody says of such a connection that nothing was granted.
CREATE TABLE code_exchanges (
    state_hash TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    ends_at INTEGER NOT NULL
) STRICT;

CREATE INDEX code_exchanges_by_connection ON code_exchanges (connection_id);
CREATE INDEX code_exchanges_by_end ON code_exchanges (ends_at);
