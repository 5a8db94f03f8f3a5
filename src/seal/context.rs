//! The context of a sealed value: the associated data that bind it to one field of one record.

/// Every field that is sealed. The words are part of the associated data and never change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SealedField {
    /// The access token of a live grant.
    Access,
    /// The refresh token of a live grant.
    Refresh,
    /// The access token of a grant whose account waits to be confirmed.
    PendingAccess,
    /// The refresh token of a grant whose account waits to be confirmed.
    PendingRefresh,
    /// The access token of a fallback grant.
    FallbackAccess,
    /// The refresh token of a fallback grant.
    FallbackRefresh,
    /// The PKCE verifier (RFC 7636) of a consent.
    Verifier,
    /// The secret of the consent link that a consent came from.
    LinkSecret,
    /// The value by which a foreign key file is recognised.
    SealingCheck,
}

impl SealedField {
    /// The word in the associated data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
            Self::PendingAccess => "pending.access",
            Self::PendingRefresh => "pending.refresh",
            Self::FallbackAccess => "escrow.access",
            Self::FallbackRefresh => "escrow.refresh",
            Self::Verifier => "verifier",
            Self::LinkSecret => "secret",
            Self::SealingCheck => "sealing_check",
        }
    }
}

/// The context that a value is sealed in; it opens in no other.
#[derive(Clone, Copy, Debug)]
pub struct SealContext<'a> {
    /// The id of the record: a connection, a consent link, the database itself.
    pub record: &'a str,
    /// The field within the record.
    pub field: SealedField,
    /// The generation of the grant; 0 where there are no generations.
    pub generation: i64,
}

impl SealContext<'_> {
    /// The associated data for a value that this key seals.
    pub(super) fn associated_data(&self, key_id: &str) -> Vec<u8> {
        // Length-prefixed, so that no two contexts have the same bytes.
        let mut data = b"token-broker sealed v1".to_vec();
        for part in [key_id, self.record, self.field.as_str()] {
            data.extend((part.len() as u64).to_be_bytes());
            data.extend(part.as_bytes());
        }
        data.extend(self.generation.to_be_bytes());
        data
    }
}
