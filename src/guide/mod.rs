//! The guides: for operators, and for those who write services. They are Markdown files, so that they
//! can be read in the repository as well.
//!
//! | page | what it answers |
//! |---|---|
//! | [`providers`] | what to do at each provider, and the traps there |
//! | [`profiles`] | every field of a profile; how to add a provider |
//! | [`api`] | every route, parameter, answer and code |
//! | [`states`] | what a state means, and what to do |
//! | [`operations`] | settings, replicas, keys, backup and restore, upgrades, proxies |
//! | [`failures`] | what is seen, what it means, what to do |
//! | [`security`] | what is defended, and what is not |
//!
//! A link between pages is a reference such as `[freezes][api#freezes]`. The end of each Markdown file
//! defines it as `api.md#freezes`, for readers of the repository. `pages!` defines it first as the
//! module's name, for rustdoc: of two definitions the first counts.

/// The pages, each with the links that any of them may use.
macro_rules! pages {
    ($($page:ident $file:literal,)+) => {
        $(
            #[doc = links!()]
            #[doc = include_str!($file)]
            pub mod $page {}
        )+
    };
}

/// The targets of links, as rustdoc knows them.
macro_rules! links {
    () => {
        "
[api]: crate::guide::api
[api#audit-events]: crate::guide::api#audit-events
[api#freezes]: crate::guide::api#freezes
[failures]: crate::guide::failures
[failures#provider_misconfigured]: crate::guide::failures#provider_misconfigured
[failures#the-broker-does-not-start]: crate::guide::failures#the-broker-does-not-start
[operations#after-a-restore-or-a-copy]: crate::guide::operations#after-a-restore-or-a-copy
[operations#audit]: crate::guide::operations#audit
[operations#sealing-keys]: crate::guide::operations#sealing-keys
[operations#simulators]: crate::guide::operations#simulators
[profiles]: crate::guide::profiles
[profiles#error-rules]: crate::guide::profiles#error-rules
[states]: crate::guide::states
[states#blocked_config]: crate::guide::states#blocked_config
[states#needs_consent]: crate::guide::states#needs_consent
[states#pending_confirm]: crate::guide::states#pending_confirm
[states#pending_consent]: crate::guide::states#pending_consent
[states#quarantined]: crate::guide::states#quarantined
[states#revoked]: crate::guide::states#revoked
[states#suspect]: crate::guide::states#suspect

"
    };
}

pages! {
    api "api.md",
    failures "failures.md",
    operations "operations.md",
    profiles "profiles.md",
    providers "providers.md",
    security "security.md",
    states "states.md",
}
