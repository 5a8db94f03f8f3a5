//! The six ways in which providers rotate refresh tokens.

use std::time::Duration;

use token_broker::simulator::settings::{AvitoSettings, RotationClass};

/// A rotation of refresh tokens: as the provider does it, and as the profile describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    rotation: RotationClass,
    profile: &'static str,
    /// The life of an access token, in seconds. Where a second presentation is dangerous the
    /// broker waits for its end, and so do the tests.
    access_life: u32,
}

const DAY: u32 = 86_400;

/// The time that a used refresh token still works in the classes with a grace, in seconds.
const GRACE: u32 = 60;

impl Class {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::NOT_ROTATING,
        Self::GRACE_SAME,
        Self::GRACE_NEW,
        Self::GRACE_NEWEST,
        Self::SINGLE_USE,
        Self::FAMILY,
    ];
    pub(crate) const NOT_ROTATING: Self = Self {
        name: "not rotating",
        rotation: RotationClass::None,
        profile: "none",
        access_life: DAY,
    };
    pub(crate) const GRACE_SAME: Self = Self {
        name: "grace, same successor",
        rotation: RotationClass::GraceSameSuccessor,
        profile: "grace",
        access_life: DAY,
    };
    pub(crate) const GRACE_NEW: Self = Self {
        name: "grace, new successors",
        rotation: RotationClass::GraceNewSuccessors,
        profile: "grace",
        access_life: DAY,
    };
    pub(crate) const GRACE_NEWEST: Self = Self {
        name: "grace, newest lives",
        rotation: RotationClass::GraceNewestLives,
        profile: "grace",
        access_life: DAY,
    };
    pub(crate) const SINGLE_USE: Self = Self {
        name: "single use",
        rotation: RotationClass::SingleUse,
        profile: "single_use",
        access_life: DAY,
    };
    pub(crate) const FAMILY: Self = Self {
        name: "single use, family",
        rotation: RotationClass::SingleUseFamily,
        profile: "single_use_family",
        access_life: 6,
    };

    /// The same with access tokens that outlive any test.
    pub(crate) const fn with_lasting_access(self) -> Self {
        Self { access_life: DAY, ..self }
    }

    /// Makes the simulated provider one of this class.
    pub(crate) fn simulate(self, settings: &mut AvitoSettings) {
        settings.rotation = Some(self.rotation);
        settings.rotation_grace = GRACE;
        settings.access_life = self.access_life;
    }

    /// The settings of the broker; no pace keeps it from refreshing all connections at once.
    pub(crate) fn settings(self, token_timeout: Duration) -> String {
        let grace =
            if self.profile == "grace" { format!("grace = '{GRACE}s'") } else { String::new() };
        format!(
            "[providers.profiles.avito]
            pace = {{ per_second = 1000, burst = 1000, in_flight = 1000 }}
            token = {{ timeout = '{}s' }}
            [providers.profiles.avito.tokens]
            rotation = '{}'
            {grace}",
            token_timeout.as_secs(),
            self.profile,
        )
    }
}
