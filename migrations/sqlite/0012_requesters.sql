-- What somebody asked for is found with whoever asked.
CREATE INDEX consent_links_by_requester ON consent_links (requested_by);
