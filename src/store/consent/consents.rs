//! Consent links, and attempts at a consent from the click to the callback.

use url::Url;

use super::exchanges::{end_code_exchange, mark_code_exchange};
use crate::{
    domain::{
        caller::Requester,
        connection::ConnectionId,
        consent::{Consent, ConsentLink, Ending, LinkId, Outcome},
        slug::Slug,
    },
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError,
        access::callers::lock_holder,
        engine::{row::Row, statement::query},
        json,
    },
};

/// The answer to a new consent link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkInserted {
    /// It is stored.
    Kept,
    /// The connection has as many live links as it may have.
    Full,
    /// The service or operator that asks for it was deleted.
    Orphan,
}

impl Store {
    /// Stores a new consent link, known from now on by the digest of its secret, if the connection has
    /// fewer than `max_live` links that neither ended nor are spent.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] when the connection is gone.
    pub async fn insert_link(
        &self,
        link: &ConsentLink,
        secret: &Digest,
        max_live: i64,
    ) -> Result<LinkInserted, StoreError> {
        let count = "
            SELECT count(*) AS live FROM consent_links
            WHERE connection_id = $2 AND spent_at IS NULL
                AND expires_at > (SELECT now_ms FROM clock) + $1";
        let insert = "
            INSERT INTO consent_links (id, secret_hash, connection_id, requested_by, scopes,
                expected_account, return_to, own_browser, created_at, expires_at, browser_hash,
                outcome, spent_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
        let Requester { holder, name } = &link.requested_by;
        let mut tx = self.begin().await?;
        if !lock_holder(&mut tx, *holder, name).await? {
            return tx.roll_back(LinkInserted::Orphan);
        }
        // Links that are made at the same time are counted one after the other.
        tx.lock_connection(link.connection).await?;
        let count = query(count).bind(self.offset()).bind(link.connection);
        if count.fetch_one(&mut tx).await?.number("live")? >= max_live {
            return tx.roll_back(LinkInserted::Full);
        }
        query(insert)
            .bind(link.id)
            .bind(secret)
            .bind(link.connection)
            .bind(link.requested_by.to_string())
            .bind(json(&link.scopes))
            .bind(link.expected_account.as_deref())
            .bind(link.return_to.as_ref().map(Url::as_str))
            .bind(link.own_browser)
            .bind(link.created_at)
            .bind(link.expires_at)
            .bind(link.browser.as_ref())
            .bind(link.outcome.map(Outcome::as_str))
            .bind(link.spent_at)
            .execute(&mut tx)
            .await?;
        tx.commit(LinkInserted::Kept).await
    }

    /// Whether there are fewer than `max` links in all, also ended and spent ones. Links that are made
    /// at this very moment are not counted.
    pub async fn has_room_for_links(&self, max: i64) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) AS held FROM (SELECT 1 FROM consent_links LIMIT $1) AS stored";
        let counted = query(sql).bind(max).fetch_one(&self.engine).await?;
        Ok(counted.number("held")? < max)
    }

    /// Whether a requester has fewer than `max` links that neither ended nor are spent. Links that are
    /// made at this very moment are not counted.
    pub async fn has_room_for_links_of(
        &self,
        requester: &Requester,
        max: i64,
    ) -> Result<bool, StoreError> {
        let sql = "
            SELECT count(*) AS held FROM (
                SELECT 1 FROM consent_links
                WHERE requested_by = $2 AND spent_at IS NULL
                    AND expires_at > (SELECT now_ms FROM clock) + $1
                LIMIT $3) AS live";
        let count = query(sql).bind(self.offset()).bind(requester.to_string()).bind(max);
        Ok(count.fetch_one(&self.engine).await?.number("held")? < max)
    }

    /// Whether there are fewer than `max` attempts in all. Attempts that are begun at this very moment
    /// are not counted.
    pub async fn has_room_for_consents(&self, max: i64) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) AS held FROM (SELECT 1 FROM consents LIMIT $1) AS stored";
        let counted = query(sql).bind(max).fetch_one(&self.engine).await?;
        Ok(counted.number("held")? < max)
    }

    /// The link of this secret, also when it has ended or is spent: the reader decides.
    pub async fn link(&self, secret: &Digest) -> Result<Option<ConsentLink>, StoreError> {
        let sql = "
            SELECT id, connection_id, requested_by, scopes, expected_account, return_to,
                own_browser, created_at, expires_at, browser_hash, outcome, account_id, spent_at
            FROM consent_links WHERE secret_hash = $1";
        let row = query(sql).bind(secret).fetch_optional(&self.engine).await?;
        row.as_ref().map(link).transpose()
    }

    /// Binds a link to the first browser that presses. True when the link is this browser's now.
    pub async fn bind_browser(&self, link: LinkId, browser: &Digest) -> Result<bool, StoreError> {
        let sql = "
            UPDATE consent_links SET browser_hash = $2
            WHERE id = $1 AND (browser_hash IS NULL OR browser_hash = $2)";
        Ok(query(sql).bind(link).bind(browser).execute(&self.engine).await? == 1)
    }

    /// Stores an attempt under the digest of its `state`. False, with nothing stored, when the link has
    /// ended, is spent, is not bound to this browser, or has `max_live` attempts under way.
    pub async fn start_consent(
        &self,
        consent: &Consent,
        state: &Digest,
        browser: &Digest,
        max_live: i64,
    ) -> Result<bool, StoreError> {
        let open_link = "
            SELECT 1 FROM consent_links
            WHERE id = $2 AND browser_hash = $3 AND spent_at IS NULL
                AND expires_at > (SELECT now_ms FROM clock) + $1";
        let insert = "
            INSERT INTO consents (state_hash, browser_hash, link_id, connection_id, client,
                redirect_uri, token_url, scopes, verifier, link_secret, started_at, expires_at)
            SELECT $3, $4, id, connection_id, $5, $6, $7, $8, $9, $10, $11, $12
            FROM consent_links
            WHERE id = $2 AND (
                SELECT count(*) FROM consents
                WHERE link_id = $2 AND expires_at > (SELECT now_ms FROM clock) + $1) < $13";
        let mut tx = self.begin().await?;
        tx.lock_connection(consent.connection).await?;
        // Attempts that begin at the same time are counted one after the other.
        let open_link = query(open_link).bind(self.offset()).bind(consent.link).bind(browser);
        if !open_link.lock(&mut tx).await? {
            return tx.roll_back(false);
        }
        let started = query(insert)
            .bind(self.offset())
            .bind(consent.link)
            .bind(state)
            .bind(browser)
            .bind(&consent.client)
            .bind(&consent.redirect_uri)
            .bind(&consent.token_url)
            .bind(json(&consent.scopes))
            .bind(consent.verifier.as_ref())
            .bind(&consent.link_secret)
            .bind(consent.started_at)
            .bind(consent.expires_at)
            .bind(max_live)
            .execute(&mut tx)
            .await?;
        tx.commit(started == 1).await
    }

    /// Takes the attempt of this `state`, once and for good, if browser and client are those that
    /// began it and it has not ended. Otherwise it stays where it is. From now on and for
    /// [`EXCHANGE_LIFE`](crate::domain::consent::EXCHANGE_LIFE) a grant may come of it, until
    /// [`DurableStore::finish_link`] says how it ended. When the database does not answer, the attempt
    /// may be taken all the same.
    pub async fn take_consent(
        &self,
        state: &Digest,
        browser: &Digest,
        client: &Slug,
    ) -> Result<Option<Consent>, StoreError> {
        let find = "SELECT connection_id FROM consents WHERE state_hash = $1 AND browser_hash = $2";
        let take = "
            DELETE FROM consents
            WHERE state_hash = $2 AND browser_hash = $3 AND client = $4
                AND expires_at > (SELECT now_ms FROM clock) + $1
            RETURNING link_id, connection_id, client, redirect_uri, token_url, scopes, verifier,
                link_secret, started_at, expires_at";
        let mut tx = self.begin().await?;
        let found = query(find).bind(state).bind(browser).fetch_optional(&mut tx).await?;
        let Some(found) = found else { return tx.roll_back(None) };
        let connection: ConnectionId = found.parsed("connection_id")?;
        // The connection's deletion comes before or after all of this.
        tx.lock_connection(connection).await?;
        let taken = query(take)
            .bind(self.offset())
            .bind(state)
            .bind(browser)
            .bind(client)
            .fetch_optional(&mut tx)
            .await?;
        let Some(taken) = taken else { return tx.roll_back(None) };
        mark_code_exchange(state, connection, self.offset()).execute(&mut tx).await?;
        // Taken once and for good, also where the row cannot be understood.
        tx.commit(consent(&taken).map(Some)).await?
    }

    /// The connection that an attempt with this `state` is for, whoever began it, and whether or not
    /// it has ended.
    pub async fn consent_of_state(
        &self,
        state: &Digest,
    ) -> Result<Option<ConnectionId>, StoreError> {
        let sql = "SELECT connection_id FROM consents WHERE state_hash = $1";
        let row = query(sql).bind(state).fetch_optional(&self.engine).await?;
        row.map(|row| row.parsed("connection_id")).transpose()
    }
}

impl DurableStore {
    /// Records how the attempt of this `state` through the link ended: no grant comes of it any more.
    /// A spent link starts nothing; its other attempts are deleted, and how they end changes nothing.
    pub async fn finish_link(
        self,
        link: LinkId,
        state: &Digest,
        ending: &Ending,
    ) -> Result<(), StoreError> {
        let finish = "
            UPDATE consent_links SET outcome = $3, account_id = $4,
                spent_at = CASE WHEN $5 = 1 THEN (SELECT now_ms FROM clock) + $1 END
            WHERE id = $2 AND spent_at IS NULL";
        let spent = ending.outcome.spends_link();
        let mut tx = self.0.begin().await?;
        query(finish)
            .bind(self.0.offset())
            .bind(link)
            .bind(ending.outcome.as_str())
            .bind(ending.account.as_deref())
            .bind(spent)
            .execute(&mut tx)
            .await?;
        if spent {
            let sql = "DELETE FROM consents WHERE link_id = $1";
            query(sql).bind(link).execute(&mut tx).await?;
        }
        end_code_exchange(state).execute(&mut tx).await?;
        tx.commit(()).await
    }
}

fn link(row: &Row) -> Result<ConsentLink, StoreError> {
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

fn consent(row: &Row) -> Result<Consent, StoreError> {
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
