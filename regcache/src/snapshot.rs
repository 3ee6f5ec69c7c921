//! [`Snapshot`]: a picture of the registrations of a cache, for diagnosis.

use std::fmt;

use intervaltree::IntervalTree;

use crate::range::VaRange;
use crate::registrar::Access;

/// The state of a registration in a [`Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EntryState {
    /// A lookup is making the registration.
    Making,
    /// Lookups find the registration.
    Cached,
    /// The memory has changed. No lookup returns the registration, and it will be unlinked.
    Invalidated,
    /// The registration was unlinked, and will be deregistered after its last guard was dropped.
    Leaving,
    /// The registration is not cached. It ends with its guard.
    Uncached,
}

impl EntryState {
    fn name(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Cached => "cached",
            Self::Invalidated => "invalidated",
            Self::Leaving => "leaving",
            Self::Uncached => "uncached",
        }
    }
}

/// One registration in a [`Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(bound = ""))]
#[non_exhaustive]
pub struct SnapshotEntry<A: Access> {
    /// The address of the first byte.
    pub start: usize,
    /// The number of bytes.
    pub len: usize,
    /// The access that the registration allows. It is unknown for an uncached registration.
    #[cfg_attr(feature = "serde", serde(serialize_with = "debug"))]
    pub access: Option<A>,
    /// The state of the registration.
    pub state: EntryState,
    /// True if the monitor watches the memory.
    pub watched: bool,
    /// True if a guard holds the registration. A registration in the making is in use too.
    pub in_use: bool,
}

#[cfg(feature = "serde")]
fn debug<A: Access, S: serde::Serializer>(access: &Option<A>, to: S) -> Result<S::Ok, S::Error> {
    match access {
        Some(access) => to.collect_str(&format_args!("{access:?}")),
        None => to.serialize_none(),
    }
}

impl<A: Access> SnapshotEntry<A> {
    pub(crate) fn new(range: VaRange, access: Option<A>, state: EntryState, in_use: bool) -> Self {
        Self {
            start: range.start(),
            len: range.len(),
            access,
            state,
            watched: !matches!(state, EntryState::Making | EntryState::Uncached),
            in_use,
        }
    }
}

/// An immutable picture of the registrations of a cache; see
/// [`Cache::snapshot`](crate::Cache::snapshot).
///
/// The `Display` implementation prints a table with one line for each registration.
#[derive(Debug, Clone)]
pub struct Snapshot<A: Access> {
    /// The entries, in the order of their addresses.
    entries: Vec<SnapshotEntry<A>>,
    /// The indexes of the entries, by their ranges.
    tree: IntervalTree<usize, usize>,
}

impl<A: Access> Snapshot<A> {
    pub(crate) fn new(mut entries: Vec<SnapshotEntry<A>>) -> Self {
        entries.sort_by_key(|entry| (entry.start, entry.len));
        let ranges = entries.iter().enumerate();
        let tree = ranges
            .map(|(index, entry)| (entry.start..entry.start + entry.len, index))
            .collect();
        Self { entries, tree }
    }

    /// Returns the registrations, in the order of their addresses.
    pub fn entries(&self) -> &[SnapshotEntry<A>] {
        &self.entries
    }

    /// Returns the registrations that cover the byte at the address, in the order of their
    /// addresses.
    ///
    /// ```
    /// # use std::io;
    /// # use regcache::{Cache, Registrar, VaRange};
    /// # struct Device;
    /// # // SAFETY: there is no device that reaches memory.
    /// # unsafe impl Registrar for Device {
    /// #     type Access = ();
    /// #     type Registration = VaRange;
    /// #     fn register(&self, range: VaRange, (): ()) -> io::Result<VaRange> { Ok(range) }
    /// #     fn deregister(&self, _: VaRange) -> io::Result<()> { Ok(()) }
    /// # }
    /// let cache = Cache::builder(Device).build()?;
    /// let buffer = vec![0_u8; 10_000];
    /// let guard = cache.get_slice(&buffer, ())?;
    ///
    /// let snapshot = cache.snapshot()?;
    /// let found = snapshot.at(buffer.as_ptr());
    /// assert!(found.iter().any(|entry| entry.in_use));
    /// println!("{snapshot}");
    /// # drop(guard);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn at(&self, address: *const u8) -> Vec<&SnapshotEntry<A>> {
        self.sorted(
            self.tree
                .query_point(address.addr())
                .map(|found| found.value),
        )
    }

    /// Returns the registrations that cover a byte of the range, in the order of their addresses.
    pub fn overlapping(&self, range: VaRange) -> Vec<&SnapshotEntry<A>> {
        let found = self.tree.query(range.start()..range.end());
        self.sorted(found.map(|found| found.value))
    }

    fn sorted(&self, found: impl Iterator<Item = usize>) -> Vec<&SnapshotEntry<A>> {
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        found
            .into_iter()
            .map(|index| &self.entries[index])
            .collect()
    }
}

impl<A: Access> fmt::Display for Snapshot<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = ["start", "bytes", "state", "watched", "in use", "access"];
        let [start, bytes, state, watched, in_use, access] = row;
        let head = format!("{start:>18} {bytes:>14} {state:<11} {watched:<7} {in_use:<6} {access}");
        writeln!(f, "{head}")?;
        let yes = |it| if it { "yes" } else { "no" };
        for entry in &self.entries {
            let access = match &entry.access {
                Some(access) => format!("{access:?}"),
                None => "unknown".to_owned(),
            };
            writeln!(
                f,
                "{:>#18x} {:>14} {:<11} {:<7} {:<6} {access}",
                entry.start,
                entry.len,
                entry.state.name(),
                yes(entry.watched),
                yes(entry.in_use),
            )?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
impl<A: Access> serde::Serialize for Snapshot<A> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.entries.serialize(to)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr;

    use super::*;

    fn range(start: usize, len: usize) -> VaRange {
        VaRange::new(ptr::without_provenance(start), len).expect("neither empty nor wrapping")
    }

    fn snapshot() -> Snapshot<()> {
        let cached = SnapshotEntry::new(range(0x3000, 0x2000), Some(()), EntryState::Cached, false);
        let leaving =
            SnapshotEntry::new(range(0x1000, 0x3000), Some(()), EntryState::Leaving, true);
        let uncached = SnapshotEntry::new(range(0x9000, 1), None, EntryState::Uncached, true);
        Snapshot::new(vec![cached, leaving, uncached])
    }

    fn starts(found: &[&SnapshotEntry<()>]) -> Vec<usize> {
        found.iter().map(|entry| entry.start).collect()
    }

    #[test]
    fn points_and_ranges_find_what_covers_them() {
        let snapshot = snapshot();
        let at = |address| starts(&snapshot.at(ptr::without_provenance(address)));
        assert!(at(0xfff).is_empty());
        assert_eq!(at(0x1000), [0x1000]);
        assert_eq!(at(0x3fff), [0x1000, 0x3000]);
        assert_eq!(at(0x4000), [0x3000]);
        assert!(at(0x9001).is_empty());
        let overlapping = |start, len| starts(&snapshot.overlapping(range(start, len)));
        assert_eq!(overlapping(0x3fff, 0x6000), [0x1000, 0x3000, 0x9000]);
        assert!(overlapping(0x5000, 0x1000).is_empty());
    }

    #[test]
    fn the_table_has_a_line_for_each_registration() {
        let table = snapshot().to_string();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            words(lines[1]),
            ["0x1000", "12288", "leaving", "yes", "yes", "()"]
        );
        assert_eq!(
            words(lines[3]),
            ["0x9000", "1", "uncached", "no", "yes", "unknown"]
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_snapshot_serialises() {
        let value = serde_json::to_value(snapshot()).unwrap();
        assert_eq!(value[0]["start"], 0x1000);
        assert_eq!(value[0]["state"], "leaving");
        assert_eq!(value[2]["access"], serde_json::Value::Null);
    }
}
