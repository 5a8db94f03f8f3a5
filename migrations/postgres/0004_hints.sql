-- Every change of what replicas keep in memory notifies them, on a channel of this schema alone (the
-- digest keeps any schema's name within a channel's length). Only a hint: they poll as well.
CREATE OR REPLACE FUNCTION hint_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('token_broker_' || md5(TG_TABLE_SCHEMA), '');
    RETURN NULL;
END
$$;

CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON connections
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT ON deleted_connections
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON services
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON operators
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
CREATE TRIGGER hint_of_change AFTER INSERT OR UPDATE OR DELETE ON keys
    FOR EACH STATEMENT EXECUTE FUNCTION hint_of_change();
