//! The identity of the database: how a restored or copied one is recognised, and quarantine.

use std::sync::Arc;

use parking_lot::RwLock;

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError,
    engine::{
        Engine,
        statement::{Statement, query},
    },
    grants::refreshing_states,
};
use crate::domain::{
    connection::ConnectionId,
    database_identity::{Epoch, Identity, Watermark},
};

/// The identity that the database had when it was last checked; shared by the clones of a store.
pub(crate) type Fence = Arc<RwLock<Option<Watermark>>>;

/// Counts a stored grant, in the transaction that stores it. All commits meet at this row, so it is
/// the last that they write.
pub(crate) const COUNT_GRANT: &str = "UPDATE identity SET global_seq = global_seq + 1";

/// Finds a row if the database is still this deployment, at this position or further on.
pub(crate) fn is_still(seen: &Watermark) -> Statement {
    let sql = "
        SELECT 1 FROM identity
        WHERE deployment = $1 AND (quarantines > $2 OR quarantines = $2 AND global_seq >= $3)";
    query(sql).bind(&seen.deployment).bind(seen.position.quarantines).bind(seen.position.seq)
}

impl Store {
    /// The identity that the database states.
    pub async fn identity(&self) -> Result<Identity, StoreError> {
        let (system, timeline) = match &self.engine {
            Engine::Postgres(_) => cluster(&self.engine).await?,
            Engine::Sqlite(_) => (None, None),
        };
        let sql = "SELECT deployment, home_cluster, quarantines, global_seq FROM identity";
        let row = query(sql).fetch_one(&self.engine).await?;
        Ok(Identity {
            deployment: row.text("deployment")?,
            home: row.text_or_null("home_cluster")?,
            system,
            timeline,
            position: Epoch {
                quarantines: row.number("quarantines")?,
                seq: row.number("global_seq")?,
            },
        })
    }

    /// From now on no claim succeeds on another database or an older one, even between two checks.
    pub fn expect(&self, seen: &Watermark) {
        let mut fence = self.fence.write();
        *fence = Some(seen.clone());
    }

    pub(crate) fn expected(&self) -> Option<Watermark> {
        self.fence.read().clone()
    }

    /// Stores the cluster that the database lies on, unless it has one stored.
    pub async fn remember_cluster(&self, system: &str) -> Result<(), StoreError> {
        let sql = "UPDATE identity SET home_cluster = $1 WHERE home_cluster IS NULL";
        query(sql).bind(system).execute(&self.engine).await?;
        Ok(())
    }

    /// Quarantines every connection that may refresh or be confirmed, for a `reason` that is a stable
    /// word, and accepts the database as it was `found`, which counts so many `quarantines` from now
    /// on. Returns how many connections there were; none, with nothing changed, when another replica
    /// was first.
    ///
    /// Attempts with no known outcome stay as evidence.
    pub async fn quarantine(
        &self,
        found: &Identity,
        quarantines: i64,
        reason: &str,
    ) -> Result<Option<u64>, StoreError> {
        let stop = format!(
            "UPDATE connections SET state = 'quarantined', reason = $2,
                changed_at = (SELECT now_ms FROM clock) + $1
            WHERE state = 'pending_confirm' OR state IN {}",
            refreshing_states()
        );
        let accept = "
            UPDATE identity SET quarantines = $1, home_cluster = COALESCE($2, home_cluster)
            WHERE deployment = $3 AND quarantines = $4";
        let mut tx = self.begin().await?;
        let stop = query(AssertSqlSafe(stop)).bind(self.offset()).bind(reason);
        let stopped = stop.execute(&mut tx).await?;
        let accepted = query(accept)
            .bind(quarantines)
            .bind(found.system.as_deref())
            .bind(&found.deployment)
            .bind(found.position.quarantines)
            .execute(&mut tx)
            .await?;
        if accepted == 0 {
            return tx.roll_back(None);
        }
        tx.commit(Some(stopped)).await
    }

    /// Ends the quarantine of a connection: it refreshes at once, or waits to be confirmed or for a
    /// consent as it did before. False when it is not quarantined.
    pub async fn end_quarantine(&self, id: ConnectionId) -> Result<bool, StoreError> {
        // A connection without a schedule is refreshed by its readers, and gets none.
        let sql = "
            UPDATE connections SET reason = NULL, changed_at = now_ms + $1,
                refresh_at = CASE WHEN refresh_at IS NULL THEN NULL ELSE now_ms + $1 END,
                state = CASE
                    WHEN grant_type = 'client_credentials'
                        OR (SELECT generation FROM grants WHERE connection_id = $2) > 0
                    THEN 'active'
                    WHEN EXISTS (SELECT 1 FROM pending_grants WHERE connection_id = $2)
                    THEN 'pending_confirm'
                    ELSE 'pending_consent' END
            FROM clock
            WHERE id = $2 AND state = 'quarantined'";
        Ok(query(sql).bind(self.offset()).bind(id).execute(&self.engine).await? == 1)
    }
}

/// The cluster's system identifier and timeline, as far as this role may read them and the server,
/// which may be a managed one or a standby, can tell. They are read only where that is allowed: every
/// refusal is an error in the server's log.
async fn cluster(engine: &Engine) -> Result<(Option<String>, Option<String>), StoreError> {
    let allowed = query(
        "SELECT (SELECT count(*) FROM pg_proc WHERE has_function_privilege(oid, 'EXECUTE')
                AND oid = to_regprocedure('pg_catalog.pg_control_system()')) AS system,
            (SELECT count(*) FROM pg_proc WHERE has_function_privilege(oid, 'EXECUTE')
                AND oid IN (to_regprocedure('pg_catalog.pg_current_wal_lsn()'),
                    to_regprocedure('pg_catalog.pg_walfile_name(pg_lsn)'))) AS timeline",
    )
    .fetch_one(engine)
    .await?;
    let system = "SELECT system_identifier::text AS known FROM pg_control_system()";
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS known
        WHERE NOT pg_is_in_recovery()";
    Ok((
        if allowed.number("system")? == 1 { optional_scalar(engine, system).await? } else { None },
        if allowed.number("timeline")? == 2 {
            optional_scalar(engine, timeline).await?
        } else {
            None
        },
    ))
}

/// The value `known` of the only row, if there is one and the server does not refuse to show it.
async fn optional_scalar(engine: &Engine, sql: &'static str) -> Result<Option<String>, StoreError> {
    match query(sql).fetch_optional(engine).await {
        Ok(row) => Ok(row.map(|row| row.text("known")).transpose()?),
        Err(StoreError::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
