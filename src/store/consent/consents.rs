use url::Url;

use super::exchanges::{END_CODE_EXCHANGE, MARK_CODE_EXCHANGE};
use crate::{
    domain::{
        caller::Requester,
        connection::ConnectionId,
        consent::{Consent, ConsentLink, EXCHANGE_LIFE, Ending, LinkId, Outcome},
        slug::Slug,
    },
    seal::{Sealed, secret::Digest},
    store::{
        Store, StoreError,
        access::callers::lock_holder,
        engine::{in_transaction, on, row::RowExt},
        json, millis, now, optional_millis,
    },
};

/// What became of a new consent link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkInserted {
    /// It is kept.
    Kept,
    /// The connection has as many live links as it may have.
    Full,
    /// Whoever asks for it was deleted.
    Orphan,
}

impl Store {
    /// Keeps a new consent link, known from now on by the digest of its secret, if the connection has
    /// fewer than `max_live` links that neither ended nor are spent.
    ///
    /// # Errors
    ///
    /// When the connection is gone, or the database does not answer.
    pub async fn insert_link(
        &self,
        link: &ConsentLink,
        secret: &Digest,
        max_live: i64,
    ) -> Result<LinkInserted, StoreError> {
        let Requester { holder, name } = &link.requested_by;
        // Changes nothing, but locks the connection: links at the same time are counted in turn.
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let count = concat!(
            "SELECT count(*) AS live FROM consent_links
            WHERE connection_id = $2 AND spent_at IS NULL AND expires_at > ",
            now!()
        );
        let insert =
            "INSERT INTO consent_links (id, secret_hash, connection_id, requested_by, scopes,
                expected_account, return_to, own_browser, created_at, expires_at, browser_hash,
                outcome, spent_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
        in_transaction!(self, |tx| {
            let asks = sqlx::query(lock_holder(*holder)).bind(name.as_str());
            if asks.execute(&mut *tx).await?.rows_affected() == 0 {
                return Ok(LinkInserted::Orphan);
            }
            sqlx::query(lock).bind(link.connection.to_string()).execute(&mut *tx).await?;
            let counted = sqlx::query(count)
                .bind(self.ahead())
                .bind(link.connection.to_string())
                .fetch_one(&mut *tx)
                .await?;
            if counted.number("live")? >= max_live {
                return Ok(LinkInserted::Full);
            }
            sqlx::query(insert)
                .bind(link.id.to_string())
                .bind(secret.to_string())
                .bind(link.connection.to_string())
                .bind(link.requested_by.to_string())
                .bind(json(&link.scopes))
                .bind(link.expected_account.as_deref())
                .bind(link.return_to.as_ref().map(Url::as_str))
                .bind(i64::from(link.own_browser))
                .bind(link.created_at.as_millisecond())
                .bind(link.expires_at.as_millisecond())
                .bind(link.browser.as_ref().map(Digest::to_string))
                .bind(link.outcome.map(Outcome::as_str))
                .bind(optional_millis(link.spent_at))
                .execute(&mut *tx)
                .await?;
        });
        Ok(LinkInserted::Kept)
    }

    /// Whether there are fewer than `max` links in all, whatever became of them. Those that are made
    /// at this very moment are not counted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn has_room_for_links(&self, max: i64) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) AS held FROM (SELECT 1 FROM consent_links LIMIT $1) AS kept";
        self.holds_fewer(sql, max).await
    }

    /// Whether somebody has fewer than `max` links that neither ended nor are spent. Those that are
    /// made at this very moment are not counted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn has_room_for_links_of(
        &self,
        requester: &Requester,
        max: i64,
    ) -> Result<bool, StoreError> {
        let sql = concat!(
            "SELECT count(*) AS held FROM (
                SELECT 1 FROM consent_links
                WHERE requested_by = $2 AND spent_at IS NULL AND expires_at > ",
            now!(),
            " LIMIT $3) AS live"
        );
        on!(self, |pool| {
            let counted = sqlx::query(sql)
                .bind(self.ahead())
                .bind(requester.to_string())
                .bind(max)
                .fetch_one(pool)
                .await?;
            Ok(counted.number("held")? < max)
        })
    }

    /// Whether there are fewer than `max` attempts in all. Those that are begun at this very moment
    /// are not counted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn has_room_for_consents(&self, max: i64) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) AS held FROM (SELECT 1 FROM consents LIMIT $1) AS kept";
        self.holds_fewer(sql, max).await
    }

    async fn holds_fewer(&self, sql: &'static str, max: i64) -> Result<bool, StoreError> {
        on!(self, |pool| {
            let counted = sqlx::query(sql).bind(max).fetch_one(pool).await?;
            Ok(counted.number("held")? < max)
        })
    }

    /// The link of this secret, also when it has ended or is spent: whoever reads it decides.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or the row does not make sense.
    pub async fn link(&self, secret: &Digest) -> Result<Option<ConsentLink>, StoreError> {
        let sql = "SELECT id, connection_id, requested_by, scopes, expected_account, return_to,
                own_browser, created_at, expires_at, browser_hash, outcome, account_id, spent_at
            FROM consent_links WHERE secret_hash = $1";
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(secret.to_string()).fetch_optional(pool).await?;
            row.map(|row| link(&row)).transpose()
        })
    }

    /// Binds a link to the first browser that presses. True when the link is this browser's now.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn bind_browser(&self, link: LinkId, browser: &Digest) -> Result<bool, StoreError> {
        let sql = "UPDATE consent_links SET browser_hash = $2
            WHERE id = $1 AND (browser_hash IS NULL OR browser_hash = $2)";
        on!(self, |pool| {
            let bound = sqlx::query(sql)
                .bind(link.to_string())
                .bind(browser.to_string())
                .execute(pool)
                .await?;
            Ok(bound.rows_affected() == 1)
        })
    }

    /// Keeps an attempt under the digest of its `state`. False, with nothing kept, when the link has
    /// ended, is spent, is not bound to this browser, or has `max_live` attempts under way.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn start_consent(
        &self,
        consent: &Consent,
        state: &Digest,
        browser: &Digest,
        max_live: i64,
    ) -> Result<bool, StoreError> {
        // Both change nothing. One locks the connection, which the attempt will refer to; the other
        // locks the link, so that two attempts at once are counted one by one.
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let open = concat!(
            "UPDATE consent_links SET browser_hash = $3
            WHERE id = $2 AND browser_hash = $3 AND spent_at IS NULL AND expires_at > ",
            now!()
        );
        let insert = concat!(
            "INSERT INTO consents (state_hash, browser_hash, link_id, connection_id, client,
                redirect_uri, token_url, scopes, verifier, link_secret, started_at, expires_at)
            SELECT $3, $4, id, connection_id, $5, $6, $7, $8, $9, $10, $11, $12
            FROM consent_links
            WHERE id = $2 AND (
                SELECT count(*) FROM consents WHERE link_id = $2 AND expires_at > ",
            now!(),
            ") < $13"
        );
        let started = in_transaction!(self, |tx| {
            let connection = consent.connection.to_string();
            sqlx::query(lock).bind(connection).execute(&mut *tx).await?;
            let open = sqlx::query(open)
                .bind(self.ahead())
                .bind(consent.link.to_string())
                .bind(browser.to_string())
                .execute(&mut *tx)
                .await?;
            if open.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query(insert)
                .bind(self.ahead())
                .bind(consent.link.to_string())
                .bind(state.to_string())
                .bind(browser.to_string())
                .bind(consent.client.as_str())
                .bind(&consent.redirect_uri)
                .bind(&consent.token_url)
                .bind(json(&consent.scopes))
                .bind(consent.verifier.as_ref().map(Sealed::as_str))
                .bind(consent.link_secret.as_str())
                .bind(consent.started_at.as_millisecond())
                .bind(consent.expires_at.as_millisecond())
                .bind(max_live)
                .execute(&mut *tx)
                .await?
                .rows_affected()
        });
        Ok(started == 1)
    }

    /// Takes the attempt of this `state`, once and for good, if browser and client are those that
    /// began it and it has not ended. Otherwise it stays where it is. From now on and for
    /// [`EXCHANGE_LIFE`] a grant may come of it, until [`Store::finish_link`] says how it ended.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the attempt may then be taken all the same.
    pub async fn take_consent(
        &self,
        state: &Digest,
        browser: &Digest,
        client: &Slug,
    ) -> Result<Option<Consent>, StoreError> {
        let find = "SELECT connection_id FROM consents WHERE state_hash = $1 AND browser_hash = $2";
        // Changes nothing, but locks the connection: its deletion comes before or after all of this.
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let take = concat!(
            "DELETE FROM consents
            WHERE state_hash = $2 AND browser_hash = $3 AND client = $4 AND expires_at > ",
            now!(),
            " RETURNING link_id, connection_id, client, redirect_uri, token_url, scopes, verifier,
                link_secret, started_at, expires_at"
        );
        let (state, browser) = (state.to_string(), browser.to_string());
        in_transaction!(self, |tx| {
            let found = sqlx::query(find).bind(&state).bind(&browser).fetch_optional(&mut *tx);
            let Some(found) = found.await? else { return Ok(None) };
            let connection = found.text("connection_id")?;
            sqlx::query(lock).bind(&connection).execute(&mut *tx).await?;
            let taken = sqlx::query(take)
                .bind(self.ahead())
                .bind(&state)
                .bind(&browser)
                .bind(client.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            let Some(taken) = taken else { return Ok(None) };
            let mark =
                sqlx::query(MARK_CODE_EXCHANGE).bind(self.ahead()).bind(&state).bind(&connection);
            mark.bind(millis(EXCHANGE_LIFE)).execute(&mut *tx).await?;
            consent(&taken).map(Some)
        })
    }

    /// The connection that an attempt with this `state` is for, whoever began it, and whether or not
    /// it has ended.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or the row does not make sense.
    pub async fn consent_of_state(
        &self,
        state: &Digest,
    ) -> Result<Option<ConnectionId>, StoreError> {
        let sql = "SELECT connection_id FROM consents WHERE state_hash = $1";
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(state.to_string()).fetch_optional(pool).await?;
            row.map(|row| row.parsed("connection_id")).transpose()
        })
    }

    /// Records how the attempt of this `state` through the link ended: no grant comes of it any more.
    /// A spent link starts nothing, its other attempts are forgotten, and how they end is of no
    /// consequence.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn finish_link(
        &self,
        link: LinkId,
        state: &Digest,
        ending: &Ending,
    ) -> Result<(), StoreError> {
        let note = concat!(
            "UPDATE consent_links SET outcome = $3, account_id = $4,
                spent_at = CASE WHEN $5 = 1 THEN ",
            now!(),
            " END WHERE id = $2 AND spent_at IS NULL"
        );
        let forget = "DELETE FROM consents WHERE link_id = $1";
        let id = link.to_string();
        let spent = ending.outcome.spends_link();
        in_transaction!(self, |tx| {
            sqlx::query(note)
                .bind(self.ahead())
                .bind(&id)
                .bind(ending.outcome.as_str())
                .bind(ending.account.as_deref())
                .bind(i64::from(spent))
                .execute(&mut *tx)
                .await?;
            if spent {
                sqlx::query(forget).bind(&id).execute(&mut *tx).await?;
            }
            sqlx::query(END_CODE_EXCHANGE).bind(state.to_string()).execute(&mut *tx).await?;
        });
        Ok(())
    }
}

fn link(row: &impl RowExt) -> Result<ConsentLink, StoreError> {
    Ok(ConsentLink {
        id: LinkId(row.parsed("id")?),
        connection: row.parsed("connection_id")?,
        requested_by: row.parsed("requested_by")?,
        scopes: row.json("scopes")?,
        expected_account: row.text_or_null("expected_account")?,
        return_to: row.parsed_or_null("return_to")?,
        own_browser: row.number("own_browser")? != 0,
        created_at: row.time("created_at")?,
        expires_at: row.time("expires_at")?,
        browser: row.parsed_or_null("browser_hash")?,
        outcome: row.parsed_or_null("outcome")?,
        account: row.text_or_null("account_id")?,
        spent_at: row.time_or_null("spent_at")?,
    })
}

fn consent(row: &impl RowExt) -> Result<Consent, StoreError> {
    Ok(Consent {
        link: LinkId(row.parsed("link_id")?),
        connection: row.parsed("connection_id")?,
        client: row.parsed("client")?,
        redirect_uri: row.text("redirect_uri")?,
        token_url: row.text("token_url")?,
        scopes: row.json("scopes")?,
        verifier: row.sealed_or_null("verifier")?,
        link_secret: row.sealed("link_secret")?,
        started_at: row.time("started_at")?,
        expires_at: row.time("expires_at")?,
    })
}
