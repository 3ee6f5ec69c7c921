//! What can be broken in the model, to see that the check notices.

use crate::model::{IN_USE, LEAKS, OTHER_RANGE, STALE, STUCK, TWICE};

/// A rule of the protocol that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The report comes after the address can be handed out again.
    LateReport,
    /// The driver only tries its lock, and leaves the report to a worker if somebody has it.
    DeferredReport,
    /// Watching does not wait for an invalidation that is under way.
    WatchDoesNotWait,
    /// A report is dropped if another one has not been read yet.
    LostReport,
    /// The cache registers, and then watches.
    WatchAfterRegistration,
    /// A drain says that it is done, and then kills what was reported.
    DrainedBeforeKilled,
    /// A miss publishes without looking whether its memory has changed meanwhile.
    MarkNotLookedAt,
    /// A hit looks whether an entry is live, and then takes a reference to it.
    ReferenceAfterLiveness,
    /// A hit does not ask the entry whether it is the one that was looked for.
    EntryNotAsked,
    /// An entry that is given up is destroyed at once, whoever uses it.
    DestroyedInUse,
    /// What is buried is not struck off the list.
    BuriedTwice,
    /// A registration whose memory changed while it was made is forgotten.
    SpoiltForgotten,
    /// The lock is kept when a registration was made in vain.
    LockKept,
}

impl Fault {
    pub(crate) const ALL: [Self; 13] = [
        Self::LateReport,
        Self::DeferredReport,
        Self::WatchDoesNotWait,
        Self::LostReport,
        Self::WatchAfterRegistration,
        Self::DrainedBeforeKilled,
        Self::MarkNotLookedAt,
        Self::ReferenceAfterLiveness,
        Self::EntryNotAsked,
        Self::DestroyedInUse,
        Self::BuriedTwice,
        Self::SpoiltForgotten,
        Self::LockKept,
    ];

    /// The property that does not hold then, or either of two.
    pub(crate) fn breaks(self) -> &'static [&'static str] {
        match self {
            Self::LateReport
            | Self::DeferredReport
            | Self::WatchDoesNotWait
            | Self::LostReport
            | Self::WatchAfterRegistration
            | Self::DrainedBeforeKilled
            | Self::MarkNotLookedAt => &[STALE],
            Self::ReferenceAfterLiveness => &[OTHER_RANGE, IN_USE],
            Self::EntryNotAsked => &[OTHER_RANGE],
            Self::DestroyedInUse => &[IN_USE],
            Self::BuriedTwice => &[TWICE],
            Self::SpoiltForgotten => &[LEAKS],
            Self::LockKept => &[STUCK],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LateReport => "late report (userfaultfd)",
            Self::DeferredReport => "deferred report (kdreg2)",
            Self::WatchDoesNotWait => "watching does not wait",
            Self::LostReport => "lost report",
            Self::WatchAfterRegistration => "watch after registration",
            Self::DrainedBeforeKilled => "drained before killed",
            Self::MarkNotLookedAt => "mark not looked at",
            Self::ReferenceAfterLiveness => "reference after liveness",
            Self::EntryNotAsked => "entry not asked",
            Self::DestroyedInUse => "destroyed in use",
            Self::BuriedTwice => "buried twice",
            Self::SpoiltForgotten => "spoilt registration forgotten",
            Self::LockKept => "lock kept",
        }
    }
}
