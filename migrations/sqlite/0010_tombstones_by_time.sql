-- What was buried long ago is found without a look at what was not.
CREATE INDEX refresh_tombstones_by_time ON refresh_tombstones (buried_at);
