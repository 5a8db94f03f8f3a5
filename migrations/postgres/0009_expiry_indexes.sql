-- What has ended is found without a look at what has not.
CREATE INDEX consents_by_end ON consents (expires_at);
CREATE INDEX consent_links_by_end ON consent_links (expires_at);
CREATE INDEX key_exchanges_by_end ON key_exchanges (expires_at);
CREATE INDEX pending_grants_by_arrival ON pending_grants (received_at);
CREATE INDEX escrow_by_arrival ON escrow (put_at);
