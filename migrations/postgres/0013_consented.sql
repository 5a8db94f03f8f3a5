-- As in ../sqlite, in PostgreSQL's words.

-- The generation of the newest grant that a person consented to: whatever was asked for before it
-- belongs to an older authorisation, and perhaps to another account.
ALTER TABLE grants ADD COLUMN consented BIGINT NOT NULL DEFAULT 0;
