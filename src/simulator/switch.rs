//! Switches: rules that no source confirms, each with the possible answers.

use serde::Deserialize;

macro_rules! switch {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$of])* $variant),+ }
    };
}

switch! {
    /// Every provider: the fate of a refresh token that was used, in place of its own rule.
    ///
    /// A grace runs from the first use; after it the token is merely dead.
    RotationClass {
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
}

switch! {
    /// Avito: a scope parameter with spaces.
    SpaceScopes {
        /// The error page of an unknown scope.
        Refuse,
        /// Read like commas.
        Split,
    }
}

switch! {
    /// Avito: an authorisation request with a `redirect_uri` that is not the registered one.
    RedirectUriMismatch {
        /// The registered one is used all the same.
        Ignore,
        /// An error page.
        Refuse,
    }
}

switch! {
    /// Avito, Admitad: the refresh token that was just used.
    OldRefreshToken {
        /// It is dead at once.
        Dies,
        /// It works for the rest of its life.
        Stays,
    }
}

switch! {
    /// Avito: errors of the token endpoint.
    ErrorStyle {
        /// RFC 6749: 400 or 401 with `error`.
        Rfc,
        /// The same body under status 200.
        InOk,
    }
}

switch! {
    /// amoCRM, Kommo: the refresh token that was just used.
    RefreshMode {
        /// It is dead at once.
        Strict,
        /// It works until something of the new pair is used.
        Lenient,
    }
}

switch! {
    /// Admitad: a token request to `/token` without the slash.
    MissingSlash {
        /// 301 to `/token/`.
        Redirect,
        /// 404.
        NotFound,
    }
}

switch! {
    /// Admitad: the type of `expires_in`.
    ExpiresIn {
        /// A number, as documented.
        Number,
        /// A string, as in the fixture of the official Python library.
        Text,
    }
}

switch! {
    /// Divar: the old access token during the grace.
    OldAccessToken {
        /// Removed at rotation, as in Hydra's code.
        Dies,
        /// Lives until the grace ends, as Divar's documents can be read.
        Lives,
    }
}

switch! {
    /// Divar: the documented extra parameters of a refresh.
    RefreshParameters {
        /// A refresh without them fails.
        Required,
        /// They are ignored, as in Hydra itself.
        Ignored,
    }
}

switch! {
    /// Divar: the revocation endpoint (RFC 7009), which no document of Divar's mentions.
    RevocationEndpoint {
        /// There is none.
        Absent,
        /// As in Hydra itself: the end of a refresh token is the end of its chain.
        Offered,
    }
}

switch! {
    /// Divar: the callback of a refusal.
    Denial {
        /// `error`, `error_description` and `state`, as Hydra sends it.
        Error,
        /// Nothing but `state`: the documents say to read a missing `code` as refusal.
        Bare,
    }
}

switch! {
    /// Divar: the family of errors.
    Hydra {
        /// Today's Hydra.
        Current,
        /// Older: reuse of a refresh token is 401 `token_inactive`.
        Old,
    }
}
