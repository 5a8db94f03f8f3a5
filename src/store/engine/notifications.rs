//! Notifications of PostgreSQL: hints that something may have changed. Polling finds the truth; a hint
//! only makes a replica poll sooner.

use std::{future::pending, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Engine, postgres::Postgres, statement::query};
use crate::store::{Store, StoreError};

/// Limit on the wait for a notification of our own. Behind a pooler in transaction mode none arrives.
const OWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before listening is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// Why no notifications arrive.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("the connection for notifications was lost")]
    Lost,
    #[error("notifications do not arrive, as behind a pooler in transaction mode")]
    Nothing,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ListenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Gives a hint whenever readers may have something new to see, for ever; several that come at
    /// once are one. There are none on SQLite, nor while PostgreSQL's notifications do not arrive,
    /// which is logged when it begins.
    pub async fn listen(&self, hint: &Notify) {
        let Engine::Postgres(postgres) = &self.engine else { return pending().await };
        let mut logged = false;
        loop {
            let mut was_connected = false;
            let error = self.forward(postgres, hint, &mut was_connected).await;
            if was_connected || !logged {
                tracing::info!("changes elsewhere are found by polling alone for now: {error}");
            }
            logged = true;
            sleep(PAUSE).await;
        }
    }

    /// Turns notifications into hints until none can come any more. Says whether any could.
    async fn forward(
        &self,
        postgres: &Postgres,
        hint: &Notify,
        was_connected: &mut bool,
    ) -> ListenError {
        let mut listener = match self.listener(postgres).await {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        *was_connected = true;
        loop {
            // Before the first notification, too: something may have changed before we listened.
            hint.notify_one();
            match listener.try_recv().await {
                Ok(Some(_)) => {}
                Ok(None) => return ListenError::Lost,
                Err(error) => return error.into(),
            }
        }
    }

    /// A listener that has received a notification of our own.
    async fn listener(&self, postgres: &Postgres) -> Result<PgListener, ListenError> {
        let channel = channel(&self.engine).await?;
        let mut listener = PgListener::connect_with(&postgres.connection_apart()).await?;
        // A silent reconnect would miss notifications; a new listener begins with a hint.
        listener.eager_reconnect(false);
        listener.listen(&channel).await?;
        query("SELECT pg_notify($1, '')").bind(&channel).execute(&self.engine).await?;
        match timeout(OWN_TIMEOUT, listener.try_recv()).await {
            Err(_) => Err(ListenError::Nothing),
            Ok(Ok(None)) => Err(ListenError::Lost),
            Ok(Ok(Some(_))) => Ok(listener),
            Ok(Err(error)) => Err(error.into()),
        }
    }
}

/// The channel of the schema that our tables are in, as the triggers name it.
async fn channel(engine: &Engine) -> Result<String, StoreError> {
    let sql = "
        SELECT 'token_broker_' || md5(n.nspname) AS channel
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = 'connections'::regclass";
    query(sql).fetch_one(engine).await?.text("channel")
}
