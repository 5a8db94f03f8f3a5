//! The rules of rotation: the fate of a refresh token that was used.

use jiff::SignedDuration;

use super::switch::RotationClass;

/// The fate of a refresh token that was used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rotation {
    /// It works for the rest of its life, and each new access token comes without another one.
    Stays,
    /// It works until something of a newer pair is used.
    UntilNextUsed,
    /// It works until `grace` after its first use; using it later harms nothing else.
    Dies { grace: SignedDuration, successors: Successors },
    /// It works until `grace` after its first use; using it later ends the whole chain. The access
    /// token of its pair works until `access_grace` after that first use.
    RevokesChain { grace: SignedDuration, access_grace: SignedDuration },
}

/// The outcome of further uses of a refresh token within its grace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Successors {
    /// The pair that the first use brought.
    Same,
    /// A new pair beside those before it.
    AllLive,
    /// A new pair, and everything issued since the first use is over.
    NewestLives,
}

impl Rotation {
    /// It is dead at once; using it again harms nothing else.
    pub(super) const SINGLE_USE: Self =
        Self::Dies { grace: SignedDuration::ZERO, successors: Successors::AllLive };

    /// It works for the rest of its life, and so does every successor.
    pub(super) const ALL_LIVE: Self =
        Self::Dies { grace: SignedDuration::MAX, successors: Successors::AllLive };

    /// The rule of a class, with its grace in seconds where it has one.
    pub(super) fn of(class: RotationClass, grace: u32) -> Self {
        let grace = SignedDuration::from_secs(i64::from(grace));
        let dies = |successors| Self::Dies { grace, successors };
        match class {
            RotationClass::None => Self::Stays,
            RotationClass::GraceSameSuccessor => dies(Successors::Same),
            RotationClass::GraceNewSuccessors => dies(Successors::AllLive),
            RotationClass::GraceNewestLives => dies(Successors::NewestLives),
            RotationClass::SingleUse => Self::SINGLE_USE,
            RotationClass::SingleUseFamily => Self::RevokesChain {
                grace: SignedDuration::ZERO,
                access_grace: SignedDuration::MAX,
            },
        }
    }
}
