-- As in ../postgres.

-- When a reader's report that the API refused the token last forced a refresh, how many did within
-- an hour, and since when that hour runs.
ALTER TABLE grants ADD COLUMN reported_at INTEGER;
ALTER TABLE grants ADD COLUMN reports INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grants ADD COLUMN reports_since INTEGER;
