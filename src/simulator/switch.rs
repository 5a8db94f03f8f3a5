//! Switches: rules that no source confirms, each with the possible answers.

use serde::Deserialize;

/// Every provider: the fate of a refresh token that was used, in place of its own rule.
///
/// A grace runs from the first use; after it the token is merely dead.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RotationClass {
    /// It works for the rest of its life, and a refresh answers without another one.
    None,
    /// Within the grace it brings the same pair again.
    GraceSameSuccessor,
    /// Within the grace every use brings a new pair beside those before it.
    GraceNewSuccessors,
    /// Within the grace every use brings a new pair, which ends those before it.
    GraceNewestLives,
    /// It is dead at once; using it again harms nothing else.
    SingleUse,
    /// It is dead at once, and using it again ends every token of its authorisation.
    SingleUseFamily,
}

/// Avito: a scope parameter with spaces.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum SpaceScopes {
    /// The error page of an unknown scope.
    Refuse,
    /// Read like commas.
    Split,
}

/// Avito: an authorisation request with a `redirect_uri` that is not the registered one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RedirectUriMismatch {
    /// The registered one is used all the same.
    Ignore,
    /// An error page.
    Refuse,
}

/// Avito, Admitad: the refresh token that was just used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum OldRefreshToken {
    /// It is dead at once.
    Dies,
    /// It works for the rest of its life.
    Stays,
}

/// Avito: errors of the token endpoint.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum ErrorStyle {
    /// RFC 6749: 400 or 401 with `error`.
    Rfc,
    /// The same body under status 200.
    InOk,
}

/// amoCRM, Kommo: the refresh token that was just used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RefreshMode {
    /// It is dead at once.
    Strict,
    /// It works until something of the new pair is used.
    Lenient,
}

/// Admitad: a token request to `/token` without the slash.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum MissingSlash {
    /// 301 to `/token/`.
    Redirect,
    /// 404.
    NotFound,
}

/// Admitad: the type of `expires_in`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum ExpiresIn {
    /// A number, as documented.
    Number,
    /// A string, as in the fixture of the official Python library.
    Text,
}

/// Divar: the old access token during the grace.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum OldAccessToken {
    /// Removed at rotation, as in Hydra's code.
    Dies,
    /// Lives until the grace ends, as Divar's documents can be read.
    Lives,
}

/// Divar: the documented extra parameters of a refresh.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RefreshParameters {
    /// A refresh without them fails.
    Required,
    /// They are ignored, as in Hydra itself.
    Ignored,
}

/// Divar: the revocation endpoint (RFC 7009), which no document of Divar's mentions.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RevocationEndpoint {
    /// There is none.
    Absent,
    /// As in Hydra itself: the end of a refresh token is the end of its chain.
    Offered,
}

/// Divar: the callback of a refusal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    /// `error`, `error_description` and `state`, as Hydra sends it.
    Error,
    /// Nothing but `state`: the documents say to read a missing `code` as refusal.
    Bare,
}

/// Divar: the family of errors.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Hydra {
    /// Today's Hydra.
    Current,
    /// Older: reuse of a refresh token is 401 `token_inactive`.
    Old,
}
