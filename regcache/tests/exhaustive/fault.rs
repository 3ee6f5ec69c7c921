//! The faults that the tests inject into the model. The checker must find a violation for each
//! fault.

use crate::model::{IN_USE, LEAKS, LIMIT, OTHER_RANGE, STALE, STUCK, TWICE};

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
    /// A drain stores the generation of the marks before it marks the reported entries.
    GenerationBeforeMarks,
    /// A thread stores `drained` while entries are marked.
    DrainedWhileMarked,
    /// A hit does not check the mark of the entry.
    MarkIgnored,
    /// A hit takes a reference to an entry, and checks the mark afterwards.
    MarkCheckedLast,
    /// A mark is cleared before its entry is killed.
    MarkClearedFirst,
    /// A lookup under the lock returns a marked entry.
    MarkedFound,
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
    /// The thread that publishes a registration does not wake those that wait for it.
    PublishedSilently,
    /// A thread that gives up a registration does not wake those that wait for it.
    GivenUpSilently,
    /// A lookup waits for the registration that it is making itself.
    WaitsForItself,
    /// The next attempt for a slot has no new watch.
    RetryNotWatched,
    /// A mark is cleared after the registration was made, and not before the watch was placed.
    MarkClearedLate,
    /// A registration is published without room for it.
    NoRoomMade,
}

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::LateReport,
        Self::DeferredReport,
        Self::WatchDoesNotWait,
        Self::LostReport,
        Self::WatchAfterRegistration,
        Self::GenerationBeforeMarks,
        Self::DrainedWhileMarked,
        Self::MarkIgnored,
        Self::MarkCheckedLast,
        Self::MarkClearedFirst,
        Self::MarkedFound,
        Self::MarkNotLookedAt,
        Self::ReferenceAfterLiveness,
        Self::EntryNotAsked,
        Self::DestroyedInUse,
        Self::BuriedTwice,
        Self::SpoiltForgotten,
        Self::LockKept,
        Self::PublishedSilently,
        Self::GivenUpSilently,
        Self::WaitsForItself,
        Self::RetryNotWatched,
        Self::MarkClearedLate,
        Self::NoRoomMade,
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
            | Self::GenerationBeforeMarks
            | Self::DrainedWhileMarked
            | Self::MarkIgnored
            | Self::MarkCheckedLast
            | Self::MarkClearedFirst
            | Self::MarkedFound
            | Self::MarkNotLookedAt
            | Self::RetryNotWatched
            | Self::MarkClearedLate => &[STALE],
            Self::ReferenceAfterLiveness => &[OTHER_RANGE, IN_USE],
            Self::EntryNotAsked => &[OTHER_RANGE],
            Self::DestroyedInUse => &[IN_USE],
            Self::BuriedTwice => &[TWICE],
            Self::SpoiltForgotten => &[LEAKS],
            Self::LockKept
            | Self::PublishedSilently
            | Self::GivenUpSilently
            | Self::WaitsForItself => &[STUCK],
            Self::NoRoomMade => &[LIMIT],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LateReport => "late report (userfaultfd)",
            Self::DeferredReport => "deferred report (kdreg2)",
            Self::WatchDoesNotWait => "watch does not wait",
            Self::LostReport => "lost report",
            Self::WatchAfterRegistration => "watch after registration",
            Self::GenerationBeforeMarks => "generation stored before marks",
            Self::DrainedWhileMarked => "drained stored while entries are marked",
            Self::MarkIgnored => "mark ignored by a hit",
            Self::MarkCheckedLast => "mark checked after the reference",
            Self::MarkClearedFirst => "mark cleared before the kill",
            Self::MarkedFound => "marked entry found in the index",
            Self::MarkNotLookedAt => "invalidation of a miss not checked",
            Self::ReferenceAfterLiveness => "reference after liveness",
            Self::EntryNotAsked => "entry not checked",
            Self::DestroyedInUse => "deregistered in use",
            Self::BuriedTwice => "deregistered twice",
            Self::SpoiltForgotten => "invalidated registration forgotten",
            Self::LockKept => "lock kept",
            Self::PublishedSilently => "waiting lookups not woken by a publication",
            Self::GivenUpSilently => "waiting lookups not woken by a failure",
            Self::WaitsForItself => "a lookup waits for itself",
            Self::RetryNotWatched => "next attempt not watched",
            Self::MarkClearedLate => "mark cleared too late",
            Self::NoRoomMade => "no room made",
        }
    }
}
