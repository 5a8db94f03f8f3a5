use std::sync::Arc;

use parking_lot::RwLock;

use super::{
    Store, StoreError,
    engine::{Engine, in_transaction, on, postgres::Postgres, row::RowExt as _},
    grants::commit::refreshing,
    now,
};
use crate::domain::{
    connection::ConnectionId,
    database_identity::{Epoch, Identity, Watermark},
};

/// What the database was last seen to be; shared by the clones of a store.
pub(crate) type Fence = Arc<RwLock<Option<Watermark>>>;

/// A row if the database is still the deployment `$1`, at the position `$2`, `$3` or further on.
pub(crate) const STILL_THE_SAME: &str = "SELECT 1 FROM identity
    WHERE deployment = $1 AND (quarantines > $2 OR (quarantines = $2 AND global_seq >= $3))";

/// Counts a stored grant, in the transaction that stores it. All commits meet at this row, so it is
/// the last that they write.
pub(crate) const COUNT_GRANT: &str = "UPDATE identity SET global_seq = global_seq + 1";

impl Store {
    /// What the database says of itself.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn identity(&self) -> Result<Identity, StoreError> {
        let (system, timeline) = match &self.engine {
            Engine::Postgres(pool) => cluster(pool).await?,
            Engine::Sqlite(_) => (None, None),
        };
        let sql = "SELECT deployment, home, quarantines, global_seq FROM identity";
        on!(self, |pool| {
            let row = sqlx::query(sql).fetch_one(pool).await?;
            Ok(Identity {
                deployment: row.text("deployment")?,
                home: row.text_or_null("home")?,
                system,
                timeline,
                position: Epoch {
                    quarantines: row.number("quarantines")?,
                    seq: row.number("global_seq")?,
                },
            })
        })
    }

    /// From now on no claim succeeds on another database or an older one, even between two looks.
    pub fn expect(&self, seen: &Watermark) {
        let mut fence = self.fence.write();
        *fence = Some(seen.clone());
    }

    pub(crate) fn expected(&self) -> Option<Watermark> {
        self.fence.read().clone()
    }

    /// Lets the database remember the cluster that it lies on, unless it remembers one.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn remember_cluster(&self, system: &str) -> Result<(), StoreError> {
        let sql = "UPDATE identity SET home = $1 WHERE home IS NULL";
        on!(self, |pool| {
            sqlx::query(sql).bind(system).execute(pool).await?;
        });
        Ok(())
    }

    /// Quarantines every connection that may refresh or be confirmed, for a `reason` that is a stable
    /// word, and accepts the database as it was `found`, which counts so many `quarantines` from now
    /// on. Returns how many connections there were; none, with nothing changed, when another replica
    /// was first.
    ///
    /// Attempts with no known outcome stay as evidence.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn quarantine(
        &self,
        found: &Identity,
        quarantines: i64,
        reason: &str,
    ) -> Result<Option<u64>, StoreError> {
        let stop = concat!(
            "UPDATE connections SET state = 'quarantined', reason = $2, changed_at = ",
            now!(),
            " WHERE state = 'pending_confirm' OR state IN ",
            refreshing!()
        );
        let accept = "UPDATE identity SET quarantines = $1, home = COALESCE($2, home)
            WHERE deployment = $3 AND quarantines = $4";
        in_transaction!(self, |tx| {
            let stopped =
                sqlx::query(stop).bind(self.ahead()).bind(reason).execute(&mut *tx).await?;
            let accepted = sqlx::query(accept)
                .bind(quarantines)
                .bind(found.system.as_deref())
                .bind(&found.deployment)
                .bind(found.position.quarantines)
                .execute(&mut *tx)
                .await?;
            if accepted.rows_affected() == 0 {
                return Ok(None);
            }
            Ok(Some(stopped.rows_affected()))
        })
    }

    /// Ends the quarantine of a connection: it refreshes at once, or waits to be confirmed or for a
    /// consent as it did before. False when it is not quarantined.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn end_quarantine(&self, id: ConnectionId) -> Result<bool, StoreError> {
        // What has no schedule is refreshed by its readers, and keeps none.
        let sql = concat!(
            "UPDATE connections SET reason = NULL, changed_at = ",
            now!(),
            ", refresh_at = CASE WHEN refresh_at IS NULL THEN NULL ELSE ",
            now!(),
            " END, state = CASE
                WHEN grant_type = 'client_credentials'
                    OR (SELECT generation FROM grants WHERE connection_id = $2) > 0 THEN 'active'
                WHEN EXISTS (SELECT 1 FROM pending_grants WHERE connection_id = $2)
                    THEN 'pending_confirm'
                ELSE 'pending_consent' END
            WHERE id = $2 AND state = 'quarantined'"
        );
        on!(self, |pool| {
            let ended = sqlx::query(sql).bind(self.ahead()).bind(id.to_string());
            Ok(ended.execute(pool).await?.rows_affected() == 1)
        })
    }
}

/// The cluster's system identifier and timeline, as far as this role may know them and the server,
/// which may be a managed one or a standby, can tell. Asked for only where that is allowed: every
/// refusal is an error in the server's log.
async fn cluster(pool: &Postgres) -> Result<(Option<String>, Option<String>), StoreError> {
    let allowed = sqlx::query(
        "SELECT (SELECT count(*) FROM pg_proc WHERE has_function_privilege(oid, 'EXECUTE')
                AND oid = to_regprocedure('pg_catalog.pg_control_system()')) AS system,
            (SELECT count(*) FROM pg_proc WHERE has_function_privilege(oid, 'EXECUTE')
                AND oid IN (to_regprocedure('pg_catalog.pg_current_wal_lsn()'),
                    to_regprocedure('pg_catalog.pg_walfile_name(pg_lsn)'))) AS timeline",
    )
    .fetch_one(pool)
    .await?;
    let system = "SELECT system_identifier::text AS known FROM pg_control_system()";
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS known
        WHERE NOT pg_is_in_recovery()";
    Ok((
        if allowed.number("system")? == 1 { told(pool, system).await? } else { None },
        if allowed.number("timeline")? == 2 { told(pool, timeline).await? } else { None },
    ))
}

/// The value `known` of the only row, if there is one and the server does not refuse to tell.
async fn told(pool: &Postgres, sql: &'static str) -> Result<Option<String>, StoreError> {
    match sqlx::query(sql).fetch_optional(pool).await.map_err(StoreError::from) {
        Ok(row) => Ok(row.map(|row| row.text("known")).transpose()?),
        Err(StoreError::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
