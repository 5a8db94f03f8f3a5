-- The same tables as in ../postgres, in SQLite's words. Times are Unix milliseconds, lists and maps
-- are JSON, digests are hexadecimal; whatever is called access, refresh, verifier or link_secret is
-- sealed.

-- The database's own clock. All replicas compare leases and deadlines with it.
CREATE VIEW clock (now_ms) AS SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER);

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE connections (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    grant_type TEXT NOT NULL,
    scopes TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    account_id TEXT,
    account_name TEXT,
    account_aliases TEXT,
    expected_account TEXT,
    vars TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    refresh_at INTEGER,
    failures INTEGER NOT NULL,
    last_error_code TEXT,
    last_error_message TEXT,
    last_error_at INTEGER,
    -- Set by every write that changes what readers see; replicas poll by it.
    changed_at INTEGER NOT NULL
) STRICT;

CREATE INDEX connections_by_change ON connections (changed_at);
CREATE INDEX connections_by_refresh ON connections (refresh_at) WHERE refresh_at IS NOT NULL;

-- What polling replicas must forget.
CREATE TABLE deleted_connections (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    deleted_at INTEGER NOT NULL
) STRICT;

CREATE INDEX deleted_connections_by_time ON deleted_connections (deleted_at);

-- Exists from the creation of its connection, so that the first grant can be claimed like any
-- other. Generation 0 holds no tokens. Apart from `connections`, so that a change of metadata never
-- contends with a claim.
CREATE TABLE grants (
    connection_id TEXT NOT NULL PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    access TEXT,
    refresh TEXT,
    scopes TEXT,
    received_at INTEGER,
    expires_at INTEGER,
    -- Until then nobody else may refresh.
    lease_until INTEGER,
    -- The intent: which attempt is about to present which refresh token. It outlives the lease when
    -- the outcome is unknown.
    attempt_id TEXT,
    attempt_started_at INTEGER,
    attempt_refresh_hash TEXT,
    -- Attempts from this generation with no known outcome, the running one included.
    attempts INTEGER NOT NULL
) STRICT;

-- Refresh tokens that were spent or refused, by digest: none of them is ever presented again.
CREATE TABLE refresh_tombstones (
    refresh_hash TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL,
    buried_at INTEGER NOT NULL
) STRICT;

CREATE TABLE pending_grants (
    connection_id TEXT NOT NULL PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    access TEXT NOT NULL,
    refresh TEXT,
    scopes TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    account_id TEXT,
    account_name TEXT,
    account_aliases TEXT,
    vars TEXT NOT NULL
) STRICT;

CREATE TABLE consent_links (
    id TEXT NOT NULL PRIMARY KEY,
    secret_hash TEXT NOT NULL UNIQUE,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    requested_by TEXT NOT NULL,
    scopes TEXT NOT NULL,
    expected_account TEXT,
    return_to TEXT,
    own_browser INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    browser_hash TEXT,
    outcome TEXT,
    spent_at INTEGER
) STRICT;

CREATE INDEX consent_links_by_connection ON consent_links (connection_id);

CREATE TABLE consents (
    state_hash TEXT NOT NULL PRIMARY KEY,
    browser_hash TEXT NOT NULL,
    link_id TEXT NOT NULL REFERENCES consent_links (id) ON DELETE CASCADE,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    client TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    token_url TEXT NOT NULL,
    scopes TEXT NOT NULL,
    verifier TEXT,
    link_secret TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX consents_by_link ON consents (link_id);
CREATE INDEX consents_by_connection ON consents (connection_id);

CREATE TABLE key_exchanges (
    id TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    client TEXT NOT NULL,
    account_host TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX key_exchanges_by_account ON key_exchanges (client, account_host);
CREATE INDEX key_exchanges_by_connection ON key_exchanges (connection_id);

CREATE TABLE services (
    name TEXT NOT NULL PRIMARY KEY,
    connections TEXT NOT NULL,
    verbs TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE operators (
    name TEXT NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    owner TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;

CREATE INDEX keys_by_owner ON keys (holder, owner);
