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

CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON freezes
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
