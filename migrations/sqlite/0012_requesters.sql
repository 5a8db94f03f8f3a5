-- What somebody asked for is found with whoever asked.
CREATE INDEX consent_links_by_requester ON consent_links (requested_by);
-- What has ended is found without a look at what has not.
CREATE INDEX keys_by_end ON keys (expires_at);
-- How many codes were tried for it.
ALTER TABLE key_exchanges ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
