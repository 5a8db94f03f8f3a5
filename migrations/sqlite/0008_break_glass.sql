-- What operators have frozen: nothing that a row names is served until the row is gone. `kind` is
-- provider, client, service or connection.
CREATE TABLE freezes (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    reason TEXT NOT NULL,
    frozen_by TEXT NOT NULL,
    frozen_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
