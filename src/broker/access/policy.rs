//! Policy: whether a connection may take a new grant, one rule for every way that leads to one.

use super::Access;
use crate::{
    broker::BrokerError,
    domain::{
        connection::{Connection, State},
        consent::ConsentLink,
    },
};

impl Access {
    /// Refuses a new grant for a connection that is deleted, frozen or quarantined. A link asks when
    /// it is made, when it is pressed and when its callback arrives, an API-key exchange when it
    /// begins and when its code arrives: what happened in between counts too.
    pub(crate) fn ensure_accepts_grants(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.ensure_not_deleted(connection)?;
        self.ensure_not_frozen(&connection.name, &connection.client)?;
        ensure_not_quarantined(connection)
    }

    /// As [`Access::ensure_accepts_grants`], and refuses a link that a frozen service asked for.
    pub(crate) fn ensure_link_open(
        &self,
        link: &ConsentLink,
        connection: &Connection,
    ) -> Result<(), BrokerError> {
        self.ensure_accepts_grants(connection)?;
        self.ensure_requester_not_frozen(link)
    }

    /// A name is free again when its deleted connection is forgotten.
    pub(crate) fn ensure_not_deleted(&self, connection: &Connection) -> Result<(), BrokerError> {
        let name = &connection.name;
        match connection.state {
            State::Revoking => Err(BrokerError::Conflict(format!(
                "connection `{name}` was deleted, and its tokens are being revoked; the name is free \
                 when that is done"
            ))),
            State::Revoked => Err(BrokerError::Conflict(format!(
                "connection `{name}` was deleted, and {}; that frees the name",
                self.clients.removal_task(connection)
            ))),
            _ => Ok(()),
        }
    }
}

/// Refuses a consent or a confirmation for a connection that is quarantined: what it would replace
/// may be live elsewhere.
pub(crate) fn ensure_not_quarantined(connection: &Connection) -> Result<(), BrokerError> {
    if connection.state != State::Quarantined {
        return Ok(());
    }
    Err(BrokerError::Conflict(format!(
        "connection `{}` is quarantined because the database looks restored or copied; an operator \
         must release it first: `token-broker release {0}`",
        connection.name
    )))
}
