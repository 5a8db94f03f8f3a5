-- The whole schema, as in ../sqlite, in PostgreSQL's words. Times are Unix milliseconds, lists and
-- maps are JSON, digests are hexadecimal. The columns access, refresh, verifier and link_secret hold
-- sealed values.

-- The clock of the database. All replicas compare leases and deadlines with it.
CREATE VIEW clock (now_ms) AS SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- Values that belong to the database as a whole: the name of the installation, the value by which a
-- foreign sealing key is recognised.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- One row, by which a restored or copied database is recognised. Commits write it last.
CREATE TABLE identity (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    deployment TEXT NOT NULL,
    -- The system identifier of the cluster that this database was last accepted on. Only PostgreSQL
    -- has one.
    home_cluster TEXT,
    -- How often the database was quarantined.
    quarantines BIGINT NOT NULL,
    -- How many grants were ever stored in it.
    global_seq BIGINT NOT NULL
);

INSERT INTO identity VALUES (1, gen_random_uuid()::text, NULL, 0, 0);

-- One account at a provider, reached through one client.
CREATE TABLE connections (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    grant_type TEXT NOT NULL,
    -- The scopes to ask for; the granted ones are those of the grant.
    scopes TEXT NOT NULL,
    state TEXT NOT NULL,
    -- Why it is in that state, as a stable word.
    reason TEXT,
    account_id TEXT,
    account_name TEXT,
    account_aliases TEXT,
    expected_account TEXT,
    vars TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When it is due; none while nothing is scheduled.
    refresh_at BIGINT,
    -- Passing failures in a row.
    failures BIGINT NOT NULL,
    last_error_code TEXT,
    last_error_message TEXT,
    last_error_at BIGINT,
    -- Set by every write that changes what readers see. Replicas poll by it.
    changed_at BIGINT NOT NULL,
    -- The token endpoint that issued the grant. The tokens are presented to no other one until an
    -- operator accepts it.
    token_url TEXT
);

CREATE INDEX connections_by_change ON connections (changed_at);
CREATE INDEX connections_by_refresh ON connections (refresh_at) WHERE refresh_at IS NOT NULL;

-- Deleted connections, for replicas to forget.
CREATE TABLE deleted_connections (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    deleted_at BIGINT NOT NULL
);

CREATE INDEX deleted_connections_by_time ON deleted_connections (deleted_at);

-- The live grant of each connection, and the claim to refresh it. The row is made with its connection,
-- so that the first grant can be claimed like any other; generation 0 holds no tokens. A table of its
-- own, so that a change of metadata never contends with a claim.
CREATE TABLE grants (
    connection_id TEXT NOT NULL PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    -- Counts the grants that the connection has held.
    generation BIGINT NOT NULL,
    access TEXT,
    refresh TEXT,
    scopes TEXT,
    received_at BIGINT,
    expires_at BIGINT,
    -- The end of the lease: until then nobody else may refresh.
    lease_until BIGINT,
    -- The intent: which attempt is about to present which refresh token. It outlives the lease when
    -- the outcome is unknown.
    attempt_id TEXT,
    attempt_started_at BIGINT,
    attempt_refresh_hash TEXT,
    -- Attempts from this generation with no known outcome, the running one included.
    attempts BIGINT NOT NULL,
    -- Attempts from this generation whose lease ran out: the process died, or was cut off.
    abandoned_attempts BIGINT NOT NULL DEFAULT 0,
    -- The refresh that brought the grant: which refresh token was presented, and when that was
    -- claimed. Two grants with the same parent are siblings; the one asked for later is kept.
    parent_hash TEXT,
    asked_at BIGINT,
    -- The generation of the newest grant that a person consented to. A grant that was asked for before
    -- it belongs to an older authorisation, and perhaps to another account.
    consented_generation BIGINT NOT NULL DEFAULT 0,
    -- When a report that the API refused the token last forced a refresh, how many did within an hour,
    -- and since when that hour runs.
    reported_at BIGINT,
    reports BIGINT NOT NULL DEFAULT 0,
    reports_since BIGINT
);

-- Grants that wait for a person to confirm whose account it is. They are never served.
CREATE TABLE pending_grants (
    connection_id TEXT NOT NULL PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    access TEXT NOT NULL,
    refresh TEXT,
    scopes TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    account_id TEXT,
    account_name TEXT,
    account_aliases TEXT,
    vars TEXT NOT NULL,
    token_url TEXT
);

CREATE INDEX pending_grants_by_arrival ON pending_grants (received_at);

-- Received grants whose generation was taken. One is tried when the grant that took it is refused.
CREATE TABLE fallback_grants (
    id TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    -- The generation that it was received for; its tokens are sealed for it.
    generation BIGINT NOT NULL,
    access TEXT NOT NULL,
    refresh TEXT NOT NULL,
    refresh_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    parent_hash TEXT,
    asked_at BIGINT,
    stored_at BIGINT NOT NULL
);

CREATE INDEX fallback_grants_by_connection ON fallback_grants (connection_id);
CREATE INDEX fallback_grants_by_arrival ON fallback_grants (stored_at);

-- Refresh tokens that were spent or refused, by digest. None is ever presented again.
CREATE TABLE spent_tokens (
    refresh_hash TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL,
    marked_at BIGINT NOT NULL
);

CREATE INDEX spent_tokens_by_time ON spent_tokens (marked_at);

-- One-time URLs that a person opens to authorise a connection.
CREATE TABLE consent_links (
    id TEXT NOT NULL PRIMARY KEY,
    secret_hash TEXT NOT NULL UNIQUE,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    requested_by TEXT NOT NULL,
    scopes TEXT NOT NULL,
    expected_account TEXT,
    return_to TEXT,
    -- 1 when the link is for the operator's own browser.
    own_browser BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- The browser that the link is bound to.
    browser_hash TEXT,
    outcome TEXT,
    spent_at BIGINT,
    -- The account of the grant of a spent link, by the provider's id. Its page shows no other one.
    account_id TEXT
);

CREATE INDEX consent_links_by_connection ON consent_links (connection_id);
CREATE INDEX consent_links_by_requester ON consent_links (requested_by);
CREATE INDEX consent_links_by_end ON consent_links (expires_at);

-- Attempts at a consent, from the click to the callback.
CREATE TABLE consents (
    -- The digest of the `state` parameter.
    state_hash TEXT NOT NULL PRIMARY KEY,
    browser_hash TEXT NOT NULL,
    link_id TEXT NOT NULL REFERENCES consent_links (id) ON DELETE CASCADE,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    client TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    token_url TEXT NOT NULL,
    scopes TEXT NOT NULL,
    -- The PKCE verifier.
    verifier TEXT,
    link_secret TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX consents_by_link ON consents (link_id);
CREATE INDEX consents_by_connection ON consents (connection_id);
CREATE INDEX consents_by_end ON consents (expires_at);

-- Codes that were taken and may bring a grant until they are exchanged, or until `ends_at` where a
-- crash cut the exchange off. A connection with such a code is not one that was never granted.
CREATE TABLE code_exchanges (
    state_hash TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    ends_at BIGINT NOT NULL
);

CREATE INDEX code_exchanges_by_connection ON code_exchanges (connection_id);
CREATE INDEX code_exchanges_by_end ON code_exchanges (ends_at);

-- API keys of amoCRM that were exchanged for a code which is still to arrive at the callback.
CREATE TABLE key_exchanges (
    id TEXT NOT NULL PRIMARY KEY,
    connection_id TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    client TEXT NOT NULL,
    account_host TEXT NOT NULL,
    requested_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- How many codes were tried for it.
    tries BIGINT NOT NULL DEFAULT 0
);

CREATE INDEX key_exchanges_by_account ON key_exchanges (client, account_host);
CREATE INDEX key_exchanges_by_connection ON key_exchanges (connection_id);
CREATE INDEX key_exchanges_by_end ON key_exchanges (expires_at);

-- Internal callers, with patterns of the connections they may use.
CREATE TABLE services (
    name TEXT NOT NULL PRIMARY KEY,
    connections TEXT NOT NULL,
    verbs TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE operators (
    name TEXT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

-- The keys of services and operators, by digest.
CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    -- service or operator
    holder TEXT NOT NULL,
    owner TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE INDEX keys_by_owner ON keys (holder, owner);
CREATE INDEX keys_by_end ON keys (expires_at);

-- What operators have frozen: nothing that a row names is served until the row is gone. `kind` is
-- provider, client, service or connection.
CREATE TABLE freezes (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    reason TEXT NOT NULL,
    frozen_by TEXT NOT NULL,
    frozen_at BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);

-- The audit trail, as it was shipped from the files of the replicas.
CREATE TABLE events (
    -- The order in which records were committed: no lower one ever comes after it.
    seq BIGINT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    happened_at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    peer TEXT,
    connection TEXT,
    connection_id TEXT,
    provider TEXT,
    fingerprint TEXT,
    generation BIGINT,
    detail TEXT
);

CREATE INDEX events_by_time ON events (happened_at);

-- One row: the last sequence number that was given. A step that writes events holds its lock until it
-- commits.
CREATE TABLE events_head (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL
);

INSERT INTO events_head VALUES (1, 0);

-- Every change of what replicas hold in memory notifies them, on a channel of this schema alone (the
-- digest keeps any schema's name within a channel's length). Only a hint: they poll as well.
CREATE OR REPLACE FUNCTION hint_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('token_broker_' || md5(TG_TABLE_SCHEMA), '');
    RETURN NULL;
END
$$;

CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON connections
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT ON deleted_connections
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON services
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON operators
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON freezes
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();

-- The connections with readable times, for people. The program does not read it.
CREATE VIEW connections_readable AS
SELECT
    c.name,
    c.client,
    c.grant_type,
    c.state,
    c.reason,
    c.account_id,
    c.account_name,
    g.generation,
    to_timestamp(g.received_at / 1000.0) AS received_at,
    to_timestamp(g.expires_at / 1000.0) AS expires_at,
    to_timestamp(c.refresh_at / 1000.0) AS refresh_at,
    to_timestamp(g.lease_until / 1000.0) AS lease_until,
    c.failures,
    c.last_error_code,
    c.last_error_message,
    to_timestamp(c.last_error_at / 1000.0) AS last_error_at,
    to_timestamp(c.created_at / 1000.0) AS created_at,
    to_timestamp(c.changed_at / 1000.0) AS changed_at,
    c.id
FROM connections c
JOIN grants g ON g.connection_id = c.id;
