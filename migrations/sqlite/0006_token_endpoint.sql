-- As in ../postgres.

-- The token endpoint that issued the grant, as its profile has it: what it issued is presented to no
-- other one until an operator says so. Unknown for what is older than this.
ALTER TABLE connections ADD COLUMN token_url TEXT;
ALTER TABLE pending_grants ADD COLUMN token_url TEXT;
