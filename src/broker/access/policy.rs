//! One rule for whatever leads to a new grant: no way into a connection is open while it is deleted,
//! frozen or quarantined.

use crate::{
    broker::{Broker, BrokerError, recovery::quarantine::refuse_in_quarantine},
    domain::{connection::Connection, consent::ConsentLink},
};

impl Broker {
    /// Refuses a way into a connection that takes no grant at present. A link asks when it is made,
    /// pressed and comes back, an API-key exchange when it begins and when its code arrives: what
    /// happened in between counts too.
    pub(crate) fn refuse_ways_in(&self, connection: &Connection) -> Result<(), BrokerError> {
        self.refuse_deleted(connection)?;
        self.refuse_frozen(&connection.name, &connection.client)?;
        refuse_in_quarantine(connection)
    }

    /// As [`Broker::refuse_ways_in`], by a link: nor by one that a frozen service asked for.
    pub(crate) fn refuse_link(
        &self,
        link: &ConsentLink,
        connection: &Connection,
    ) -> Result<(), BrokerError> {
        self.refuse_ways_in(connection)?;
        self.refuse_frozen_requester(link)
    }
}
