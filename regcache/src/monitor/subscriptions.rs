//! [`Subscriptions`]: the watches of a shared monitor, and the subscriptions of its members.
//!
//! A *member* stands for one cache. A *subscription* is a member's share of a watch, and has the
//! cookie of that cache. Each watch has at least one subscription.
//!
//! # Size
//!
//! Nearly every watch has exactly one subscription. So the record of a watch contains its first
//! subscription. Each further subscription has a record of its own, and these records form a list.
//! Of a million watches, each watch and its only subscription take about 60 bytes:
//!
//! - 40 bytes for the record of the watch;
//! - 6 to 11 bytes in each of two hash tables. One table finds the watch by its range. The other
//!   belongs to the member, and finds the subscription by its cookie. The tables contain only the
//!   places of records, and the keys are in the records.
//!
//! A member also reserves 4 bytes for the mark of each subscription. The records and the marks are
//! in vectors, whose capacities double when they grow. The kernel provides the memory behind a
//! large capacity only when it is first written.
//!
//! # Names of watches
//!
//! The cookie of a watch has the watch's place in its low 32 bits, and a serial number in the
//! others. A place is used again after its watch has ended, but each watch has a new serial number.
//! So a late report of an ended watch is never taken for a report of a new one, unless the serial
//! number wraps. The number wraps after 2^32 watches. Only a report that is late by so many watches
//! could be mistaken. Two watches that exist at the same time have different cookies even then.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZeroU32;

use hashbrown::HashTable;

use super::contract::Cookie;
use super::pile::Pile;
use crate::range::VaRange;

/// The watches of a monitor, and the subscriptions to them; see the head of this file.
#[derive(Debug)]
pub(super) struct Subscriptions {
    records: Records,
    /// The watches that new subscriptions may join, by their ranges. No two have the same range.
    by_range: HashTable<u32>,
    /// The watches that are being placed on the monitor, apart from those that were reported
    /// meanwhile.
    placing: Vec<Cookie>,
    /// The subscriptions of each member. The index is the number of the member.
    members: Vec<OfMember>,
    hasher: RandomState,
    /// The serial number of the last watch.
    serial: NonZeroU32,
}

/// The effect of the end of a subscription.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Only the subscription has ended, because the watch has others.
    Subscription,
    /// The watch, which has this cookie, has ended too.
    Watch(Cookie),
}

/// The subscriptions of one member.
#[derive(Debug, Default)]
struct OfMember {
    /// All subscriptions, by their cookies.
    by_cookie: HashTable<Place>,
    /// The marked subscriptions. The capacity suffices for all subscriptions.
    marked: Vec<Place>,
}

/// The watches and subscriptions, by their places.
#[derive(Debug)]
struct Records {
    watches: Pile<Watch>,
    others: Pile<Other>,
}

/// The end of a list of records, and the mark of a subscription that is not marked. No record has
/// this place and no mark has this index, because a pile has at most [`Pile::MAX`] records.
const NONE: u32 = u32::MAX;

/// A watch that was or is being placed on the monitor.
#[derive(Debug)]
struct Watch {
    range: VaRange,
    /// One of the subscriptions. After it has ended, the others stay where they are.
    first: Option<Subscription>,
    /// The head of the list of the other subscriptions.
    others: u32,
    serial: NonZeroU32,
}

/// A subscription that is not the first one of its watch.
#[derive(Debug)]
struct Other {
    subscription: Subscription,
    watch: u32,
    /// The next one of the same watch.
    next: u32,
}

#[derive(Debug)]
struct Subscription {
    cookie: Cookie,
    member: MemberNumber,
    /// The index of this subscription in the member's list of marked subscriptions.
    mark: u32,
}

/// The index of a member, plus one. So an `Option` of a subscription needs no room of its own.
#[derive(Debug, Clone, Copy)]
struct MemberNumber(NonZeroU32);

/// The place of a subscription: the place of its watch, or the place of its own record with
/// [`OTHER`](Self::OTHER) set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u32);

impl MemberNumber {
    fn new(index: usize) -> Option<Self> {
        let number = u32::try_from(index).ok()?.checked_add(1)?;
        NonZeroU32::new(number).map(Self)
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl Place {
    const OTHER: u32 = 1 << 31;

    fn first_of(watch: u32) -> Self {
        Self(watch)
    }

    fn of_other(other: u32) -> Self {
        Self(other | Self::OTHER)
    }

    fn is_other(self) -> bool {
        self.0 & Self::OTHER != 0
    }

    fn index(self) -> u32 {
        self.0 & !Self::OTHER
    }
}

impl Watch {
    fn cookie(&self, at: u32) -> Cookie {
        Cookie::of(at, self.serial.get())
    }
}

impl Records {
    /// Returns the place of the watch that has this cookie. Returns `None` if the watch has ended.
    fn named(&self, cookie: Cookie) -> Option<u32> {
        let at = cookie.place();
        let watch = self.watches.get(at)?;
        (watch.cookie(at) == cookie).then_some(at)
    }

    fn subscription(&self, place: Place) -> Option<&Subscription> {
        if place.is_other() {
            Some(&self.others.get(place.index())?.subscription)
        } else {
            self.watches.get(place.index())?.first.as_ref()
        }
    }

    fn subscription_mut(&mut self, place: Place) -> Option<&mut Subscription> {
        if place.is_other() {
            Some(&mut self.others.get_mut(place.index())?.subscription)
        } else {
            self.watches.get_mut(place.index())?.first.as_mut()
        }
    }

    /// Adds a subscription to a watch. Returns the subscription's place, or `None` if there is no
    /// room.
    fn join(&mut self, at: u32, subscription: Subscription) -> Option<Place> {
        let watch = self.watches.get_mut(at)?;
        if watch.first.is_none() {
            watch.first = Some(subscription);
            return Some(Place::first_of(at));
        }
        let other = self.others.add(Other {
            subscription,
            watch: at,
            next: watch.others,
        })?;
        watch.others = other;
        Some(Place::of_other(other))
    }

    /// Removes a subscription from its watch. Returns the place of the watch.
    fn leave(&mut self, place: Place) -> Option<u32> {
        if !place.is_other() {
            self.watches.get_mut(place.index())?.first = None;
            return Some(place.index());
        }
        let left = self.others.remove(place.index())?;
        let watch = self.watches.get_mut(left.watch)?;
        if watch.others == place.index() {
            watch.others = left.next;
            return Some(left.watch);
        }
        let mut at = watch.others;
        while let Some(other) = self.others.get_mut(at) {
            if other.next == place.index() {
                other.next = left.next;
                break;
            }
            at = other.next;
        }
        Some(left.watch)
    }
}

impl Subscriptions {
    pub(super) fn new() -> Self {
        Self {
            records: Records {
                watches: Pile::new(),
                others: Pile::new(),
            },
            by_range: HashTable::new(),
            placing: Vec::new(),
            members: Vec::new(),
            hasher: RandomState::new(),
            serial: NonZeroU32::MAX,
        }
    }

    /// Returns the number of watches.
    pub(super) fn watches(&self) -> usize {
        self.records.watches.len()
    }

    /// Subscribes the member to `range`. If this needs a new watch, returns the watch's cookie. The
    /// caller must place that watch on the monitor and then [`offer`](Self::offer) it.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no room for another subscription.
    pub(super) fn subscribe(
        &mut self,
        member: usize,
        range: VaRange,
        cookie: Cookie,
    ) -> io::Result<Option<Cookie>> {
        self.add(member, range, cookie).ok_or_else(|| {
            io::Error::other(
                "this shared monitor has no room for another watch: let the caches keep fewer \
                 registrations, or open a second monitor",
            )
        })
    }

    /// Does what [`subscribe`](Self::subscribe) does. Returns `None` if there is no room.
    fn add(&mut self, member: usize, range: VaRange, cookie: Cookie) -> Option<Option<Cookie>> {
        let subscription = Subscription {
            cookie,
            member: MemberNumber::new(member)?,
            mark: NONE,
        };
        let (place, new) = match self.joinable(range) {
            Some(watch) => (self.records.join(watch, subscription)?, None),
            None => {
                self.serial = self.serial.checked_add(1).unwrap_or(NonZeroU32::MIN);
                let at = self.records.watches.add(Watch {
                    range,
                    first: Some(subscription),
                    others: NONE,
                    serial: self.serial,
                })?;
                let new = self.records.watches.get(at)?.cookie(at);
                self.placing.push(new);
                (Place::first_of(at), Some(new))
            }
        };
        if self.members.len() <= member {
            self.members.resize_with(member + 1, OfMember::default);
        }
        let (records, hasher) = (&self.records, &self.hasher);
        let member = self.members.get_mut(member)?;
        let hash = hasher.hash_one(cookie);
        member
            .by_cookie
            .insert_unique(hash, place, hash_of_cookie(records, hasher));
        // A drain adds the marked subscriptions to `marked`, and must not allocate. So the room for
        // this subscription is reserved here.
        let missing = member.by_cookie.len().saturating_sub(member.marked.len());
        member.marked.reserve(missing);
        Some(new)
    }

    /// Returns the watch of `range` that a new subscription may join, if there is one.
    fn joinable(&self, range: VaRange) -> Option<u32> {
        let hash = self.hasher.hash_one(range);
        let is_of_range = |&at: &u32| {
            let watch = self.records.watches.get(at);
            watch.is_some_and(|watch| watch.range == range)
        };
        self.by_range.find(hash, is_of_range).copied()
    }

    /// Lets new subscriptions join a watch, which was placed on the monitor. Has no effect if the
    /// watch was reported meanwhile, or if they can join another watch of the same range.
    pub(super) fn offer(&mut self, ours: Cookie) {
        if !self.was_placing(ours) {
            return;
        }
        let Some(at) = self.records.named(ours) else {
            return;
        };
        let Some(watch) = self.records.watches.get(at) else {
            return;
        };
        if self.joinable(watch.range).is_none() {
            let hash = self.hasher.hash_one(watch.range);
            let hash_of = hash_of_range(&self.records, &self.hasher);
            self.by_range.insert_unique(hash, at, hash_of);
        }
    }

    /// Removes a watch from those that are being placed. Returns false if it is not among them.
    fn was_placing(&mut self, ours: Cookie) -> bool {
        let found = self.placing.iter().position(|&other| other == ours);
        found.is_some_and(|at| {
            self.placing.swap_remove(at);
            true
        })
    }

    /// Lets no new subscription join the watch.
    fn withdraw(&mut self, at: u32) {
        let Some(watch) = self.records.watches.get(at) else {
            return;
        };
        let hash = self.hasher.hash_one(watch.range);
        if let Ok(found) = self.by_range.find_entry(hash, |&other| other == at) {
            found.remove();
        }
    }

    /// Ends a subscription. If it was the last one of its watch, ends the watch too. Returns `None`
    /// if there is no such subscription.
    pub(super) fn end(&mut self, member: usize, cookie: Cookie) -> Option<Ended> {
        let hash = self.hasher.hash_one(cookie);
        let member = self.members.get_mut(member)?;
        let has_cookie = |&place: &Place| {
            let subscription = self.records.subscription(place);
            subscription.is_some_and(|its| its.cookie == cookie)
        };
        let found = member.by_cookie.find_entry(hash, has_cookie).ok()?;
        let (place, _) = found.remove();
        member.unmark(place, &mut self.records);
        member.give_back(&self.records, &self.hasher);
        let at = self.records.leave(place)?;
        let watch = self.records.watches.get(at)?;
        if watch.first.is_some() || watch.others != NONE {
            return Some(Ended::Subscription);
        }
        let ours = watch.cookie(at);
        self.was_placing(ours);
        self.withdraw(at);
        self.records.watches.remove(at);
        give_back(
            &mut self.by_range,
            hash_of_range(&self.records, &self.hasher),
        );
        Some(Ended::Watch(ours))
    }

    /// Marks all subscriptions to the watch that a report names. Allocates no memory.
    ///
    /// The reported change may have put memory into the range that the monitor would refuse. So no
    /// new subscription joins the watch from now on.
    pub(super) fn report(&mut self, ours: Cookie) {
        let Some(at) = self.records.named(ours) else {
            return;
        };
        self.was_placing(ours);
        self.withdraw(at);
        self.mark(Place::first_of(at));
        let watch = self.records.watches.get(at);
        let mut next = watch.map_or(NONE, |watch| watch.others);
        while next != NONE {
            self.mark(Place::of_other(next));
            next = self.records.others.get(next).map_or(NONE, |it| it.next);
        }
    }

    fn mark(&mut self, place: Place) {
        if let Some(subscription) = self.records.subscription_mut(place)
            && let Some(member) = self.members.get_mut(subscription.member.index())
            && subscription.mark == NONE
        {
            // The cast loses no bits, because two piles have fewer than 2^32 subscriptions.
            subscription.mark = member.marked.len() as u32;
            member.marked.push(place);
        }
    }

    /// Returns true if a subscription of the member is marked.
    pub(super) fn has_marked(&self, member: usize) -> bool {
        let member = self.members.get(member);
        member.is_some_and(|member| !member.marked.is_empty())
    }

    /// Unmarks a marked subscription of the member. Returns the subscription's cookie, or `None` if
    /// no subscription is marked.
    pub(super) fn take_marked(&mut self, member: usize) -> Option<Cookie> {
        let place = self.members.get_mut(member)?.marked.pop()?;
        let subscription = self.records.subscription_mut(place)?;
        subscription.mark = NONE;
        Some(subscription.cookie)
    }

    /// Returns the cookies of the member's subscriptions.
    pub(super) fn cookies(&self, member: usize) -> impl Iterator<Item = Cookie> {
        let places = self.members.get(member).into_iter();
        places
            .flat_map(|member| &member.by_cookie)
            .filter_map(|&place| Some(self.records.subscription(place)?.cookie))
    }
}

impl OfMember {
    /// Removes the mark of a subscription, if it has one.
    fn unmark(&mut self, place: Place, records: &mut Records) {
        let Some(subscription) = records.subscription_mut(place) else {
            return;
        };
        let mark = subscription.mark as usize;
        subscription.mark = NONE;
        if mark >= self.marked.len() {
            return;
        }
        self.marked.swap_remove(mark);
        // The last subscription of the list has moved to the empty place.
        if let Some(&moved) = self.marked.get(mark)
            && let Some(moved) = records.subscription_mut(moved)
        {
            moved.mark = mark as u32;
        }
    }

    /// Gives memory back if the member had far more subscriptions than it has.
    fn give_back(&mut self, records: &Records, hasher: &RandomState) {
        give_back(&mut self.by_cookie, hash_of_cookie(records, hasher));
        let subscriptions = self.by_cookie.len();
        if subscriptions < self.marked.capacity() / 4 {
            self.marked.shrink_to(2 * subscriptions);
        }
    }
}

/// Gives memory of a table back if the table had far more elements than it has.
fn give_back<T>(table: &mut HashTable<T>, hash_of: impl Fn(&T) -> u64) {
    if table.len() < table.num_buckets() / 8 {
        table.shrink_to(2 * table.len(), hash_of);
    }
}

/// Returns the function that a table of watches by range calls when it grows or shrinks.
fn hash_of_range(records: &Records, hasher: &RandomState) -> impl Fn(&u32) -> u64 {
    move |&at| {
        let watch = records.watches.get(at);
        watch.map_or(0, |watch| hasher.hash_one(watch.range))
    }
}

/// Returns the function that a table of subscriptions by cookie calls when it grows or shrinks.
fn hash_of_cookie(records: &Records, hasher: &RandomState) -> impl Fn(&Place) -> u64 {
    move |&place| {
        let subscription = records.subscription(place);
        subscription.map_or(0, |its| hasher.hash_one(its.cookie))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr;

    use super::*;

    fn range(i: usize) -> VaRange {
        VaRange::new(ptr::without_provenance(0x1000 * (i + 1)), 0x1000).expect("not empty")
    }

    fn cookie(i: usize) -> Cookie {
        Cookie(i as u64)
    }

    impl Subscriptions {
        /// Adds a watch, and returns its cookie.
        fn place(&mut self, member: usize, i: usize) -> Cookie {
            let new = self.subscribe(member, range(i), cookie(i));
            let new = new.expect("room").expect("a new watch");
            self.offer(new);
            new
        }

        fn take_all_marked(&mut self, member: usize) -> Vec<u64> {
            let marked = std::iter::from_fn(|| self.take_marked(member));
            let mut marked: Vec<_> = marked.map(|cookie| cookie.0).collect();
            marked.sort_unstable();
            marked
        }

        /// Returns the bytes of the hash tables and of the lists of marks.
        fn table_bytes(&self) -> usize {
            let of_members = self.members.iter().map(|it| {
                it.by_cookie.allocation_size() + it.marked.capacity() * size_of::<Place>()
            });
            self.by_range.allocation_size() + of_members.sum::<usize>()
        }
    }

    #[test]
    fn the_record_of_a_watch_takes_40_bytes() {
        /// A place of a slab has this shape.
        #[allow(dead_code, reason = "only the size matters")]
        enum Entry<T> {
            Vacant(usize),
            Occupied(T),
        }
        assert_eq!(size_of::<Entry<Watch>>(), 40);
        assert_eq!(size_of::<Entry<Other>>(), 24);
        assert_eq!(size_of::<Place>(), 4);
    }

    #[test]
    fn a_late_report_does_not_name_the_next_watch_at_the_same_place() {
        let mut subscriptions = Subscriptions::new();
        let old = subscriptions.place(0, 1);
        assert_eq!(subscriptions.end(0, cookie(1)), Some(Ended::Watch(old)));
        let new = subscriptions.place(0, 2);
        assert_eq!(old.0 as u32, new.0 as u32);
        subscriptions.report(old);
        assert!(!subscriptions.has_marked(0));
        subscriptions.report(new);
        assert_eq!(subscriptions.take_all_marked(0), [2]);
    }

    #[test]
    fn nobody_joins_a_watch_that_was_reported_while_it_was_placed() {
        let mut subscriptions = Subscriptions::new();
        let first = subscriptions.subscribe(0, range(1), cookie(1)).unwrap();
        let first = first.unwrap();
        subscriptions.report(first);
        subscriptions.offer(first);
        let second = subscriptions.subscribe(1, range(1), cookie(1)).unwrap();
        assert_ne!(second.unwrap(), first);
        assert_eq!(subscriptions.take_all_marked(0), [1]);
    }

    #[test]
    fn the_others_of_a_watch_stay_when_one_of_its_subscriptions_ends() {
        const MEMBERS: usize = 4;
        for leaving in 0..MEMBERS {
            let mut subscriptions = Subscriptions::new();
            let watch = subscriptions.place(0, 7);
            let join = |subscriptions: &mut Subscriptions, member| {
                let new = subscriptions.subscribe(member, range(7), cookie(7));
                assert_eq!(new.unwrap(), None);
            };
            for member in 1..MEMBERS {
                join(&mut subscriptions, member);
            }
            let ended = subscriptions.end(leaving, cookie(7));
            assert_eq!(ended, Some(Ended::Subscription));
            assert_eq!(subscriptions.end(leaving, cookie(7)), None);
            join(&mut subscriptions, MEMBERS);
            subscriptions.report(watch);
            for member in 0..=MEMBERS {
                let marked = subscriptions.take_all_marked(member);
                assert_eq!(marked.len(), usize::from(member != leaving));
            }
        }
    }

    #[test]
    fn a_report_needs_only_room_that_was_reserved() {
        let mut subscriptions = Subscriptions::new();
        let watches: Vec<_> = (0..1000).map(|i| subscriptions.place(0, i)).collect();
        for i in (0..1000).filter(|i| i % 8 != 0) {
            subscriptions.end(0, cookie(i));
        }
        let reserved = subscriptions.table_bytes();
        for watch in watches {
            subscriptions.report(watch);
        }
        assert_eq!(subscriptions.table_bytes(), reserved);
        assert_eq!(subscriptions.take_all_marked(0).len(), 125);
    }

    #[test]
    fn a_marked_subscription_that_ends_is_not_reported() {
        let mut subscriptions = Subscriptions::new();
        let watches: Vec<_> = (0..10).map(|i| subscriptions.place(0, i)).collect();
        for watch in watches {
            subscriptions.report(watch);
        }
        for i in [3, 9, 0, 4] {
            assert!(subscriptions.end(0, cookie(i)).is_some());
        }
        assert_eq!(subscriptions.take_all_marked(0), [1, 2, 5, 6, 7, 8]);
    }

    #[test]
    fn memory_is_given_back_while_subscriptions_end() {
        const WATCHES: usize = 10_000;
        let mut subscriptions = Subscriptions::new();
        for i in 0..WATCHES {
            subscriptions.place(0, i);
            subscriptions.subscribe(1, range(i), cookie(i)).unwrap();
        }
        let full = subscriptions.table_bytes();
        for i in 0..WATCHES {
            assert_eq!(subscriptions.end(0, cookie(i)), Some(Ended::Subscription));
            assert!(matches!(
                subscriptions.end(1, cookie(i)),
                Some(Ended::Watch(_))
            ));
            if i == WATCHES * 9 / 10 {
                assert!(subscriptions.table_bytes() < full / 2);
                assert_eq!(subscriptions.cookies(1).count(), WATCHES - 1 - i);
                assert!((i + 1..WATCHES).all(|i| subscriptions.joinable(range(i)).is_some()));
            }
        }
        assert_eq!(subscriptions.watches(), 0);
        assert!(subscriptions.table_bytes() < 200);
    }
}
