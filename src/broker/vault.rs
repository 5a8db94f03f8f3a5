//! The vault: seals and opens the tokens of grants and the secrets of consents.

use secrecy::SecretString;

use crate::{
    domain::{
        connection::ConnectionId,
        consent::LinkId,
        grant::{GrantSlot, OpenGrant, SealedGrant},
    },
    seal::{Keyring, OpenError, SealContext, Sealed, SealedField, secret::Digest},
};

/// The sealing keys, and the only way to seal or open what is stored.
#[derive(Debug)]
pub(crate) struct Vault {
    keyring: Keyring,
}

impl Vault {
    pub(crate) fn new(keyring: Keyring) -> Self {
        Self { keyring }
    }

    /// Seals a grant of this connection for a slot.
    pub(crate) fn seal(
        &self,
        connection: ConnectionId,
        slot: GrantSlot,
        grant: &OpenGrant,
    ) -> SealedGrant {
        let id = connection.to_string();
        SealedGrant {
            slot,
            access: self.keyring.seal(slot.access(&id), &grant.access),
            refresh: grant
                .refresh
                .as_ref()
                .map(|token| self.keyring.seal(slot.refresh(&id), token)),
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            origin: grant.origin.clone(),
        }
    }

    /// Opens a grant of this connection.
    pub(crate) fn open(
        &self,
        connection: ConnectionId,
        grant: &SealedGrant,
    ) -> Result<OpenGrant, OpenError> {
        Ok(OpenGrant {
            access: self.open_access(connection, grant)?,
            refresh: self.open_refresh(connection, grant)?,
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            origin: grant.origin.clone(),
        })
    }

    /// Opens the access token of a grant alone.
    pub(crate) fn open_access(
        &self,
        connection: ConnectionId,
        grant: &SealedGrant,
    ) -> Result<SecretString, OpenError> {
        self.keyring.open(grant.slot.access(&connection.to_string()), &grant.access)
    }

    /// Opens the refresh token of a grant alone; none where it has none.
    pub(crate) fn open_refresh(
        &self,
        connection: ConnectionId,
        grant: &SealedGrant,
    ) -> Result<Option<SecretString>, OpenError> {
        let id = connection.to_string();
        let open = |sealed| self.keyring.open(grant.slot.refresh(&id), sealed);
        grant.refresh.as_ref().map(open).transpose()
    }

    /// The digest of a grant's refresh token; none where it has none or does not open.
    pub(crate) fn refresh_hash(
        &self,
        connection: ConnectionId,
        grant: &SealedGrant,
    ) -> Option<Digest> {
        self.open_refresh(connection, grant).ok().flatten().as_ref().map(Digest::of)
    }

    /// Seals a secret of a consent: its PKCE verifier, or the secret of its link.
    pub(crate) fn seal_of_link(
        &self,
        link: LinkId,
        field: SealedField,
        secret: &SecretString,
    ) -> Sealed {
        self.keyring.seal(of_link(&link.to_string(), field), secret)
    }

    /// Opens a secret of a consent.
    pub(crate) fn open_of_link(
        &self,
        link: LinkId,
        field: SealedField,
        sealed: &Sealed,
    ) -> Result<SecretString, OpenError> {
        self.keyring.open(of_link(&link.to_string(), field), sealed)
    }

    /// True if the key file holds the key of a sealed value.
    pub(crate) fn has_key(&self, sealed: &Sealed) -> bool {
        self.keyring.has_key(sealed)
    }

    /// The reason why the key file could not be read again, if it could not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.keyring.problem()
    }

    /// Reads the key file again if it has changed.
    pub(crate) fn reload_if_changed(&self) {
        self.keyring.reload_if_changed();
    }
}

fn of_link(link: &str, field: SealedField) -> SealContext<'_> {
    SealContext { record: link, field, generation: 0 }
}
