use std::time::Duration;

use super::{Store, StoreError, engine::on, millis, now, row::Cells as _};
use crate::{connection::ConnectionId, consent::CONFIRM_LIFE};

/// How long a link is kept past its end, for its page to say that it has ended.
const LINK_MEMORY: Duration = Duration::from_hours(24);

/// How many of each [`Store::purge_expired`] forgot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Purged {
    /// Consent links that ended a day ago.
    pub links: u64,
    /// Attempts that have ended.
    pub consents: u64,
    /// Grants that nobody confirmed within [`CONFIRM_LIFE`].
    pub pending_grants: u64,
    /// API-key exchanges whose code never came.
    pub exchanges: u64,
    /// Grants that lay in escrow for a week.
    pub escrow: u64,
}

impl Store {
    /// Forgets what has ended.
    ///
    /// # Errors
    ///
    /// When the database does not answer; what was forgotten by then stays so.
    pub async fn purge_expired(&self) -> Result<Purged, StoreError> {
        let consents = concat!("DELETE FROM consents WHERE expires_at <= ", now!());
        let exchanges = concat!("DELETE FROM key_exchanges WHERE expires_at <= ", now!());
        let links = concat!("DELETE FROM consent_links WHERE expires_at <= ", now!(), " - $2");
        let (consents, exchanges, links) = on!(self, |pool| {
            let consents = sqlx::query(consents).bind(self.ahead()).execute(pool).await?;
            let exchanges = sqlx::query(exchanges).bind(self.ahead()).execute(pool).await?;
            let links = sqlx::query(links)
                .bind(self.ahead())
                .bind(millis(LINK_MEMORY))
                .execute(pool)
                .await?;
            (consents.rows_affected(), exchanges.rows_affected(), links.rows_affected())
        });
        let pending_grants = self.purge_pending().await?;
        let escrow = self.purge_escrow().await?;
        Ok(Purged { links, consents, pending_grants, exchanges, escrow })
    }

    async fn purge_pending(&self) -> Result<u64, StoreError> {
        // What is still to be revoked is kept until it is.
        let sql = concat!(
            "SELECT connection_id, received_at FROM pending_grants WHERE received_at <= ",
            now!(),
            " - $2 AND connection_id NOT IN (SELECT id FROM connections WHERE state = 'revoking')"
        );
        let ended: Vec<(ConnectionId, i64)> = on!(self, |pool| {
            let rows = sqlx::query(sql)
                .bind(self.ahead())
                .bind(millis(CONFIRM_LIFE))
                .fetch_all(pool)
                .await?;
            rows.iter()
                .map(|row| Ok((row.parsed("connection_id")?, row.number("received_at")?)))
                .collect::<Result<_, StoreError>>()?
        });
        let mut purged = 0;
        for (connection, received_at) in ended {
            // A newer grant may have taken its place since.
            purged += u64::from(self.drop_pending_until(connection, received_at).await?);
        }
        Ok(purged)
    }
}
