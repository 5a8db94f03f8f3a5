-- One row, by which a restored or copied database is known.
CREATE TABLE identity (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    deployment TEXT NOT NULL,
    -- Only PostgreSQL knows one.
    home TEXT,
    -- How often the database was quarantined.
    quarantines INTEGER NOT NULL,
    -- How many grants were ever stored in it.
    global_seq INTEGER NOT NULL
) STRICT;

INSERT INTO identity VALUES (1, lower(hex(randomblob(16))), NULL, 0, 0);
