//! The faults that the tests inject into the model. The checker must find a violation for each
//! fault.

use crate::model::{IN_USE, LEAKS, OTHER_RANGE, STALE, STUCK, TWICE};

/// A way in which the model breaks a rule of the protocol on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The driver reports a change only after the address can be handed out again.
    LateReport,
    /// The driver does not wait for its lock. If the lock is taken, the driver leaves the report to
    /// a worker.
    DeferredReport,
    /// A watch does not wait for an invalidation that is in flight.
    WatchDoesNotWait,
    /// A report is lost if an earlier report has not been read yet.
    LostReport,
    /// The cache registers before it watches.
    WatchAfterRegistration,
    /// A drain stores the new value of `drained` before it unlinks the reported entries.
    DrainedBeforeKilled,
    /// A miss publishes its registration without checking whether the memory has changed meanwhile.
    MarkNotLookedAt,
    /// A hit checks that an entry is live, and takes a reference to the entry in a second step.
    ReferenceAfterLiveness,
    /// A hit does not check that the entry is for the page of the lookup.
    EntryNotAsked,
    /// An unlinked entry is deregistered at once, even if guards still hold it.
    DestroyedInUse,
    /// A dead entry stays on the list of dead entries after it was deregistered.
    BuriedTwice,
    /// If the memory changes while a registration is made, the registration is leaked.
    SpoiltForgotten,
    /// A miss does not release the table's lock if the memory of its new registration has changed
    /// meanwhile.
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

    /// Returns the properties that this fault may violate. The checker must find a violation of one
    /// of these properties.
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
            Self::WatchDoesNotWait => "watch does not wait",
            Self::LostReport => "lost report",
            Self::WatchAfterRegistration => "watch after registration",
            Self::DrainedBeforeKilled => "drained before killed",
            Self::MarkNotLookedAt => "mark not checked",
            Self::ReferenceAfterLiveness => "reference after liveness",
            Self::EntryNotAsked => "entry not checked",
            Self::DestroyedInUse => "deregistered in use",
            Self::BuriedTwice => "deregistered twice",
            Self::SpoiltForgotten => "invalidated registration forgotten",
            Self::LockKept => "lock kept",
        }
    }
}
