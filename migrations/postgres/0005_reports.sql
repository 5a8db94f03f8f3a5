-- As in ../sqlite, in PostgreSQL's words.

-- When a reader's report that the API refused the token last forced a refresh, how many did within
-- an hour, and since when that hour runs.
ALTER TABLE grants ADD COLUMN reported_at BIGINT;
ALTER TABLE grants ADD COLUMN reports BIGINT NOT NULL DEFAULT 0;
ALTER TABLE grants ADD COLUMN reports_since BIGINT;
