-- One row, by which a restored or copied database is known. Written last in a transaction.
CREATE TABLE identity (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    deployment TEXT NOT NULL,
    -- The cluster that this database was last accepted on: its system identifier.
    home TEXT,
    -- How often the database was quarantined.
    quarantines BIGINT NOT NULL,
    -- How many grants were ever stored in it.
    global_seq BIGINT NOT NULL
);

INSERT INTO identity VALUES (1, gen_random_uuid()::text, NULL, 0, 0);
