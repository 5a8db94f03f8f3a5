//! Services, operators and their keys.

use crate::{
    domain::{
        caller::{Holder, Operator, Requester, Service, StoredKey},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{
            row::{Row, ok_or_log},
            statement::{Statement, Tx, query},
        },
        json,
    },
};

impl Store {
    /// Adds a service with its first key.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`] as well.
    pub async fn create_service(
        &self,
        service: &Service,
        key: &StoredKey,
    ) -> Result<(), StoreError> {
        let insert = "
            INSERT INTO services (name, connections, verbs, created_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (name) DO NOTHING";
        let mut tx = self.begin().await?;
        let inserted = query(insert)
            .bind(&service.name)
            .bind(json(&service.connections))
            .bind(json(&service.verbs))
            .bind(service.created_at)
            .execute(&mut tx)
            .await?;
        if inserted == 0 {
            return tx.fail(StoreError::NameTaken(service.name.clone()));
        }
        insert_key(key).execute(&mut tx).await?;
        tx.commit(()).await
    }

    /// Adds an operator with their first key.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`] as well.
    pub async fn create_operator(
        &self,
        operator: &Operator,
        key: &StoredKey,
    ) -> Result<(), StoreError> {
        let insert = "
            INSERT INTO operators (name, created_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        let mut tx = self.begin().await?;
        let insert = query(insert).bind(&operator.name).bind(operator.created_at);
        if insert.execute(&mut tx).await? == 0 {
            return tx.fail(StoreError::NameTaken(operator.name.clone()));
        }
        insert_key(key).execute(&mut tx).await?;
        tx.commit(()).await
    }

    /// Adds a key to its owner. False when there is no such owner, or it has `max_live` keys that
    /// have not ended.
    pub async fn add_key(&self, key: &StoredKey, max_live: i64) -> Result<bool, StoreError> {
        let count = "
            SELECT count(*) AS live FROM keys WHERE holder = $2 AND owner = $3
                AND (expires_at IS NULL OR expires_at > (SELECT now_ms FROM clock) + $1)";
        let mut tx = self.begin().await?;
        // No key outlives its owner, to be inherited with the name.
        if !lock_holder(&mut tx, key.holder, &key.owner).await? {
            return tx.roll_back(false);
        }
        let count = query(count).bind(self.offset()).bind(key.holder.as_str()).bind(&key.owner);
        if count.fetch_one(&mut tx).await?.number("live")? >= max_live {
            return tx.roll_back(false);
        }
        insert_key(key).execute(&mut tx).await?;
        tx.commit(true).await
    }

    /// All services by name. One that cannot be understood is left out, and logged: it gets no access,
    /// and must not keep the others from theirs.
    pub async fn services(&self) -> Result<Vec<Service>, StoreError> {
        let sql = "SELECT name, connections, verbs, created_at FROM services ORDER BY name";
        let rows = query(sql).fetch_all(&self.engine).await?;
        Ok(rows.iter().filter_map(|row| ok_or_log("service", service(row))).collect())
    }

    /// All operators by name.
    pub async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        let sql = "SELECT name, created_at FROM operators ORDER BY name";
        query(sql).fetch_all(&self.engine).await?.iter().map(operator).collect()
    }

    /// All keys that have not ended. One that cannot be understood is left out, as with
    /// [`Store::services`].
    pub async fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        let sql = "
            SELECT id, holder, owner, digest, created_at, expires_at FROM keys
            WHERE expires_at IS NULL OR expires_at > (SELECT now_ms FROM clock) + $1
            ORDER BY holder, owner, created_at, id";
        let rows = query(sql).bind(self.offset()).fetch_all(&self.engine).await?;
        Ok(rows.iter().filter_map(|row| ok_or_log("key", key(row))).collect())
    }

    /// Deletes a service, its keys and the open links that it made. False when there is no such
    /// service.
    pub async fn delete_service(&self, name: &Slug) -> Result<bool, StoreError> {
        self.delete_holder("DELETE FROM services WHERE name = $1", Holder::Service, name).await
    }

    /// Deletes an operator, their keys and the open links that they made. False when there is no such
    /// operator.
    pub async fn delete_operator(&self, name: &Slug) -> Result<bool, StoreError> {
        self.delete_holder("DELETE FROM operators WHERE name = $1", Holder::Operator, name).await
    }

    async fn delete_holder(
        &self,
        delete: &'static str,
        holder: Holder,
        name: &Slug,
    ) -> Result<bool, StoreError> {
        let delete_keys = "DELETE FROM keys WHERE holder = $1 AND owner = $2";
        // The attempts go with a link. One that is spent or has ended starts nothing anyway.
        let withdraw_links = "
            DELETE FROM consent_links
            WHERE requested_by = $2 AND spent_at IS NULL
                AND expires_at > (SELECT now_ms FROM clock) + $1";
        let requester = Requester { holder, name: name.clone() }.to_string();
        let mut tx = self.begin().await?;
        let deleted = query(delete).bind(name).execute(&mut tx).await?;
        query(delete_keys).bind(holder.as_str()).bind(name).execute(&mut tx).await?;
        query(withdraw_links).bind(self.offset()).bind(requester).execute(&mut tx).await?;
        tx.commit(deleted == 1).await
    }

    /// Deletes a key by its public id. False when there is no such key.
    pub async fn delete_key(&self, id: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM keys WHERE id = $1";
        Ok(query(sql).bind(id).execute(&self.engine).await? == 1)
    }
}

/// Locks an operator or service until the end of a step, so that nothing of theirs outlives them.
/// False when there is none.
pub(crate) async fn lock_holder(
    tx: &mut Tx,
    holder: Holder,
    name: &Slug,
) -> Result<bool, StoreError> {
    let sql = match holder {
        Holder::Operator => "SELECT 1 FROM operators WHERE name = $1",
        Holder::Service => "SELECT 1 FROM services WHERE name = $1",
    };
    query(sql).bind(name).lock(tx).await
}

fn insert_key(key: &StoredKey) -> Statement {
    let sql = "
        INSERT INTO keys (id, holder, owner, digest, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6)";
    query(sql)
        .bind(&key.id)
        .bind(key.holder.as_str())
        .bind(&key.owner)
        .bind(key.digest)
        .bind(key.created_at)
        .bind(key.expires_at)
}

fn service(row: &Row) -> Result<Service, StoreError> {
    Ok(Service {
        name: row.parsed("name")?,
        connections: row.json("connections")?,
        verbs: row.json("verbs")?,
        created_at: row.time("created_at")?,
    })
}

fn operator(row: &Row) -> Result<Operator, StoreError> {
    Ok(Operator { name: row.parsed("name")?, created_at: row.time("created_at")? })
}

fn key(row: &Row) -> Result<StoredKey, StoreError> {
    Ok(StoredKey {
        id: row.text("id")?,
        holder: row.parsed("holder")?,
        owner: row.parsed("owner")?,
        digest: row.parsed("digest")?,
        created_at: row.time("created_at")?,
        expires_at: row.time_or_null("expires_at")?,
    })
}
