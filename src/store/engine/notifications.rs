//! Hints that something may have changed. Never the truth, which is what polling finds: a hint only
//! makes a replica look sooner.

use std::{future::pending, time::Duration};

use sqlx::postgres::PgListener;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Engine, postgres::Postgres, row::RowExt as _};
use crate::store::{Store, StoreError};

/// How long a notification of one's own may take to arrive. Behind a pooler in transaction mode
/// none ever does.
const OWN_ARRIVES: Duration = Duration::from_secs(5);

/// How long to do without before trying again.
const PAUSE: Duration = Duration::from_secs(30);

/// Why no hints come.
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
        let mut said = false;
        loop {
            let mut heard = false;
            let deaf = self.pass_on(postgres, hint, &mut heard).await;
            if heard || !said {
                tracing::info!("changes elsewhere are found by polling alone for now: {deaf}");
            }
            said = true;
            sleep(PAUSE).await;
        }
    }

    /// Passes hints on until none can come any more; `heard` says whether any did.
    async fn pass_on(&self, postgres: &Postgres, hint: &Notify, heard: &mut bool) -> ListenError {
        let mut listener = match self.listener(postgres).await {
            Ok(listener) => listener,
            Err(deaf) => return deaf,
        };
        *heard = true;
        loop {
            // The first one, too: something may have changed before we listened.
            hint.notify_one();
            match listener.try_recv().await {
                Ok(Some(_)) => {}
                Ok(None) => return ListenError::Lost,
                Err(error) => return error.into(),
            }
        }
    }

    /// A listener that has been seen to hear.
    async fn listener(&self, postgres: &Postgres) -> Result<PgListener, ListenError> {
        let channel = channel(postgres).await?;
        let mut listener = PgListener::connect_with(&postgres.connection_apart()).await?;
        // What is missed meanwhile must be looked for: a new listener begins with a hint.
        listener.eager_reconnect(false);
        listener.listen(&channel).await?;
        let notify = "SELECT pg_notify($1, '')";
        sqlx::query(notify).bind(&channel).execute(postgres).await?;
        match timeout(OWN_ARRIVES, listener.try_recv()).await {
            Err(_) => Err(ListenError::Nothing),
            Ok(Ok(None)) => Err(ListenError::Lost),
            Ok(Ok(Some(_))) => Ok(listener),
            Ok(Err(error)) => Err(error.into()),
        }
    }
}

/// The channel of the schema that our tables are in, as the triggers name it.
async fn channel(postgres: &Postgres) -> Result<String, StoreError> {
    let sql = "SELECT 'token_broker_' || md5(n.nspname) AS channel
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = 'connections'::regclass";
    sqlx::query(sql).fetch_one(postgres).await?.text("channel")
}
