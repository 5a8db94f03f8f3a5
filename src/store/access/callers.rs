use crate::{
    domain::{
        caller::{Holder, Operator, Requester, Service, StoredKey},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{
            in_transaction, on,
            row::{RowExt, ok_or_log},
        },
        json, now, optional_millis,
    },
};

const INSERT_KEY: &str = "INSERT INTO keys (id, holder, owner, digest, created_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// Inserts a key on an executor of either engine.
macro_rules! insert_key {
    ($executor:expr, $key:expr) => {
        sqlx::query(INSERT_KEY)
            .bind(&$key.id)
            .bind($key.holder.as_str())
            .bind($key.owner.as_str())
            .bind($key.digest.to_string())
            .bind($key.created_at.as_millisecond())
            .bind(optional_millis($key.expires_at))
            .execute($executor)
            .await?
    };
}

impl Store {
    /// Adds a service with its first key.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`]; or when the database does not answer.
    pub async fn create_service(
        &self,
        service: &Service,
        key: &StoredKey,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO services (name, connections, verbs, created_at)
            VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";
        in_transaction!(self, |tx| {
            let inserted = sqlx::query(sql)
                .bind(service.name.as_str())
                .bind(json(&service.connections))
                .bind(json(&service.verbs))
                .bind(service.created_at.as_millisecond())
                .execute(&mut *tx)
                .await?;
            if inserted.rows_affected() == 0 {
                return Err(StoreError::NameTaken(service.name.clone()));
            }
            insert_key!(&mut *tx, key);
        });
        Ok(())
    }

    /// Adds an operator with their first key.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`]; or when the database does not answer.
    pub async fn create_operator(
        &self,
        operator: &Operator,
        key: &StoredKey,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO operators (name, created_at) VALUES ($1, $2)
            ON CONFLICT (name) DO NOTHING";
        in_transaction!(self, |tx| {
            let inserted = sqlx::query(sql)
                .bind(operator.name.as_str())
                .bind(operator.created_at.as_millisecond())
                .execute(&mut *tx)
                .await?;
            if inserted.rows_affected() == 0 {
                return Err(StoreError::NameTaken(operator.name.clone()));
            }
            insert_key!(&mut *tx, key);
        });
        Ok(())
    }

    /// Adds a key to its owner. False when there is no such owner, or it has `max_live` keys that
    /// have not ended.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn add_key(&self, key: &StoredKey, max_live: i64) -> Result<bool, StoreError> {
        let count = concat!(
            "SELECT count(*) AS live FROM keys WHERE holder = $2 AND owner = $3
                AND (expires_at IS NULL OR expires_at > ",
            now!(),
            ")"
        );
        in_transaction!(self, |tx| {
            // No key outlives its owner, to be inherited with the name.
            let owner = sqlx::query(lock_holder(key.holder))
                .bind(key.owner.as_str())
                .execute(&mut *tx)
                .await?;
            if owner.rows_affected() == 0 {
                return Ok(false);
            }
            let counted = sqlx::query(count)
                .bind(self.ahead())
                .bind(key.holder.as_str())
                .bind(key.owner.as_str())
                .fetch_one(&mut *tx)
                .await?;
            if counted.number("live")? >= max_live {
                return Ok(false);
            }
            insert_key!(&mut *tx, key);
        });
        Ok(true)
    }

    /// All services by name. One that cannot be understood is left out, and logged: it gets no access,
    /// and must not keep the others from theirs.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn services(&self) -> Result<Vec<Service>, StoreError> {
        let sql = "SELECT name, connections, verbs, created_at FROM services ORDER BY name";
        on!(self, |pool| {
            let rows = sqlx::query(sql).fetch_all(pool).await?;
            Ok(rows.iter().filter_map(|row| ok_or_log("service", service(row))).collect())
        })
    }

    /// All operators by name.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or a row does not make sense.
    pub async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        let sql = "SELECT name, created_at FROM operators ORDER BY name";
        on!(self, |pool| sqlx::query(sql).fetch_all(pool).await?.iter().map(operator).collect())
    }

    /// All keys that have not ended. One that cannot be understood is left out, as with
    /// [`Store::services`].
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        let sql = concat!(
            "SELECT id, holder, owner, digest, created_at, expires_at FROM keys
            WHERE expires_at IS NULL OR expires_at > ",
            now!(),
            " ORDER BY holder, owner, created_at, id"
        );
        on!(self, |pool| {
            let rows = sqlx::query(sql).bind(self.ahead()).fetch_all(pool).await?;
            Ok(rows.iter().filter_map(|row| ok_or_log("key", key(row))).collect())
        })
    }

    /// Forgets a service and its keys, and withdraws the links that it made. False when there is no
    /// such service.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn delete_service(&self, name: &Slug) -> Result<bool, StoreError> {
        self.delete_holder("DELETE FROM services WHERE name = $1", Holder::Service, name).await
    }

    /// Forgets an operator and their keys, and withdraws the links that they made. False when there
    /// is no such operator.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn delete_operator(&self, name: &Slug) -> Result<bool, StoreError> {
        self.delete_holder("DELETE FROM operators WHERE name = $1", Holder::Operator, name).await
    }

    async fn delete_holder(
        &self,
        delete: &'static str,
        holder: Holder,
        name: &Slug,
    ) -> Result<bool, StoreError> {
        // Its attempts go with a link; one that is spent or has ended starts nothing anyway.
        let withdraw = concat!(
            "DELETE FROM consent_links
            WHERE requested_by = $2 AND spent_at IS NULL AND expires_at > ",
            now!()
        );
        let requester = Requester { holder, name: name.clone() };
        let deleted = in_transaction!(self, |tx| {
            let deleted = sqlx::query(delete).bind(name.as_str()).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM keys WHERE holder = $1 AND owner = $2")
                .bind(holder.as_str())
                .bind(name.as_str())
                .execute(&mut *tx)
                .await?;
            sqlx::query(withdraw)
                .bind(self.ahead())
                .bind(requester.to_string())
                .execute(&mut *tx)
                .await?;
            deleted.rows_affected()
        });
        Ok(deleted == 1)
    }

    /// Forgets a key by its public id. False when there is no such key.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn delete_key(&self, id: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM keys WHERE id = $1";
        on!(self, |pool| Ok(sqlx::query(sql).bind(id).execute(pool).await?.rows_affected() == 1))
    }
}

/// Changes nothing, but locks an operator or service of name `$1` until the end of a step, so that
/// nothing of theirs outlives them. Finds no row where there is none.
pub(crate) fn lock_holder(holder: Holder) -> &'static str {
    match holder {
        Holder::Operator => "UPDATE operators SET name = name WHERE name = $1",
        Holder::Service => "UPDATE services SET name = name WHERE name = $1",
    }
}

fn service(row: &impl RowExt) -> Result<Service, StoreError> {
    Ok(Service {
        name: row.parsed("name")?,
        connections: row.json("connections")?,
        verbs: row.json("verbs")?,
        created_at: row.time("created_at")?,
    })
}

fn operator(row: &impl RowExt) -> Result<Operator, StoreError> {
    Ok(Operator { name: row.parsed("name")?, created_at: row.time("created_at")? })
}

fn key(row: &impl RowExt) -> Result<StoredKey, StoreError> {
    Ok(StoredKey {
        id: row.text("id")?,
        holder: row.parsed("holder")?,
        owner: row.parsed("owner")?,
        digest: row.parsed("digest")?,
        created_at: row.time("created_at")?,
        expires_at: row.time_or_null("expires_at")?,
    })
}
