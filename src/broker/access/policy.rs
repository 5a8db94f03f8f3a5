//! One rule for whatever leads to a new grant: no way into a connection is open while it is deleted,
//! frozen or quarantined.

use crate::{
    broker::{Broker, BrokerError, recovery::quarantine::ensure_not_quarantined},
    domain::{connection::Connection, consent::ConsentLink},
};

impl Broker {
    /// Refuses a way into a connection that takes no grant at present. A link asks when it is made,
    /// pressed and comes back, an API-key exchange when it begins and when its code arrives: what
    /// happened in between counts too.
    pub(crate) fn ensure_accepts_grants(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.ensure_not_deleted(connection)?;
        self.ensure_not_frozen(&connection.name, &connection.client)?;
        ensure_not_quarantined(connection)
    }

    /// As [`Broker::ensure_accepts_grants`], by a link: nor by one that a frozen service asked for.
    pub(crate) fn refuse_link(
        &self,
        link: &ConsentLink,
        connection: &Connection,
    ) -> Result<(), BrokerError> {
        self.ensure_accepts_grants(connection)?;
        self.ensure_requester_not_frozen(link)
    }
}
