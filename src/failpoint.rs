//! Failpoints: named points of a refresh where a test can hold it, to kill or pause the process.
//!
//! Without the Cargo feature `failpoints` they do nothing. With it, the environment variable
//! `TOKEN_BROKER_HOLD` names a point: every refresh that reaches it is logged and stays there. Tests
//! in the same process pass a hold of their own.

use std::fmt;

#[cfg(feature = "failpoints")]
use std::sync::Arc;

#[cfg(feature = "failpoints")]
use futures_util::future::BoxFuture;
use strum::{Display, EnumString, IntoStaticStr};

/// A point of a refresh, in the order in which it passes them.
#[derive(Clone, Copy, Debug, Display, EnumString, Eq, IntoStaticStr, PartialEq, PartialOrd)]
#[strum(serialize_all = "snake_case")]
pub enum Point {
    /// The spool has room; nothing is claimed.
    Unclaimed,
    /// The claim and the intent are committed; nothing is sent.
    Claimed,
    /// The connection to the provider stands; not a byte is written.
    Connected,
    /// The request is written; nothing of an answer has come.
    Written,
    /// The head of the answer has come, and nothing of its body.
    Answered,
    /// A part of the answer's body has come.
    PartlyRead,
    /// The whole answer is in memory.
    Received,
    /// The grant is in the spool.
    Spooled,
    /// The commit has ended: the grant is in the database, kept as a fallback or dropped. It is in the
    /// spool still.
    Committed,
    /// The spool is empty again. Readers do not have the grant yet, unless the database was slow.
    Unpublished,
}

/// A test's action on a refresh that reaches a point.
#[cfg(feature = "failpoints")]
pub type Hold = Arc<dyn Fn(Point) -> BoxFuture<'static, ()> + Send + Sync>;

/// The holds that are set; none but in tests.
#[derive(Clone, Default)]
pub struct Failpoints {
    #[cfg(feature = "failpoints")]
    hold: Option<Hold>,
}

impl Failpoints {
    /// The hold that `TOKEN_BROKER_HOLD` asks for, where the feature is compiled in.
    ///
    /// # Panics
    ///
    /// When it names no point: a test that holds nowhere would prove nothing.
    pub fn from_environment() -> Self {
        #[cfg(feature = "failpoints")]
        if let Ok(name) = std::env::var("TOKEN_BROKER_HOLD") {
            let held: Point = name.parse().expect("TOKEN_BROKER_HOLD names a point");
            return Self::new(Arc::new(move |point| {
                Box::pin(async move {
                    if point == held {
                        tracing::warn!("held at {point}");
                        std::future::pending::<()>().await;
                    }
                })
            }));
        }
        Self::default()
    }

    /// A hold of a test's own.
    #[cfg(feature = "failpoints")]
    pub fn new(hold: Hold) -> Self {
        Self { hold: Some(hold) }
    }

    /// A refresh reaches a point.
    #[cfg_attr(
        not(feature = "failpoints"),
        expect(clippy::unused_async, reason = "waits only where the feature is compiled in")
    )]
    pub(crate) async fn reach(&self, point: Point) {
        #[cfg(feature = "failpoints")]
        if let Some(hold) = &self.hold {
            hold(point).await;
        }
        #[cfg(not(feature = "failpoints"))]
        let _ = point;
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failpoints")
    }
}
