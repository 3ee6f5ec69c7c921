//! [`Access`]: the operations that a registration allows.

use std::hint::cold_path;

bitflags::bitflags! {
    /// The operations that a registration allows. Work requests of this process may read any
    /// registration. So [`Access::empty`] suffices for the source of a send or of an RDMA write.
    ///
    /// The values are those of libibverbs (`enum ibv_access_flags`).
    ///
    /// **[`REMOTE_WRITE`](Self::REMOTE_WRITE) and [`REMOTE_ATOMIC`](Self::REMOTE_ATOMIC) imply
    /// [`LOCAL_WRITE`](Self::LOCAL_WRITE)**, because the verbs require this flag for registrations
    /// that a peer may write to. The implication is safe: work requests of this process may then
    /// write to memory that a peer may already write to. Without the implication, registering would
    /// fail with `EINVAL` if a caller forgets the flag.
    ///
    /// # Flags that are missing
    ///
    /// - `ON_DEMAND` pins nothing, because the device follows the page tables. Such a registration
    ///   cannot become stale and needs no cache. A registrar must promise pinned pages.
    /// - `ZERO_BASED` makes the device's addresses differ from the process's addresses. A cache
    ///   returns one registration for the lookups of all ranges within that registration. All these
    ///   lookups use the process's addresses.
    /// - `MW_BIND` lets a program bind memory windows, which have separate keys, to a registration.
    ///   The device refuses to deregister a registration with windows. But a cache must be able to
    ///   deregister at any time.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// Work requests of this process may write. The destination of a receive or an RDMA read
        /// needs this.
        const LOCAL_WRITE = 1;
        /// A peer may write (RDMA write).
        const REMOTE_WRITE = 1 << 1;
        /// A peer may read (RDMA read).
        const REMOTE_READ = 1 << 2;
        /// A peer may do atomic operations.
        const REMOTE_ATOMIC = 1 << 3;
        /// The memory consists of huge pages. The device may use larger translation entries for
        /// such memory. This flag is not a permission.
        const HUGETLB = 1 << 7;
        /// The device may write to memory in any order. Kernels and devices that do not know this
        /// flag ignore it. This flag is not a permission.
        const RELAXED_ORDERING = 1 << 20;
    }
}

impl Access {
    /// The flags that are permissions. A registration may have more permissions than a lookup
    /// requests.
    const PERMISSIONS: Self = Self::LOCAL_WRITE
        .union(Self::REMOTE_WRITE)
        .union(Self::REMOTE_READ)
        .union(Self::REMOTE_ATOMIC);

    /// Returns the flags together with the flags that they imply. The device gets the result.
    #[inline]
    #[must_use]
    pub const fn with_implied(self) -> Self {
        if self.intersects(Self::REMOTE_WRITE.union(Self::REMOTE_ATOMIC)) {
            self.union(Self::LOCAL_WRITE)
        } else {
            self
        }
    }
}

/// A registration serves a lookup if it has at least the permissions of the lookup. Flags that are
/// not permissions must be equal.
///
/// A registration with [`RELAXED_ORDERING`](Access::RELAXED_ORDERING) does not serve a transfer
/// that relies on the order of its writes. A registration without this flag could serve a transfer
/// with relaxed ordering. But the transfer would be slower, and the caller would not notice why.
impl regcache::Access for Access {
    #[inline]
    fn serves(self, wanted: Self) -> bool {
        let have = self.with_implied().bits();
        let want = wanted.with_implied().bits();
        let permissions = Self::PERMISSIONS.bits();
        have & want & permissions == want & permissions && (have ^ want) & !permissions == 0
    }

    /// Compares without the implied permissions. So the registration must have each permission that
    /// is wanted, and may differ only in permissions.
    #[inline(always)]
    fn serves_at_once(self, wanted: Self) -> bool {
        if self == wanted {
            return true;
        }
        cold_path();
        let (have, want) = (self.bits(), wanted.bits());
        (have ^ want) & (want | !Self::PERMISSIONS.bits()) == 0
    }

    fn writes(self) -> bool {
        self.with_implied().contains(Self::LOCAL_WRITE)
    }

    fn is_remote(self) -> bool {
        self.intersects(Self::REMOTE_READ | Self::REMOTE_WRITE | Self::REMOTE_ATOMIC)
    }
}

#[cfg(test)]
mod tests {
    use regcache::Access as _;

    use super::Access;

    #[test]
    fn what_is_served_at_once_is_served() {
        let mut at_once = 0;
        for have in every() {
            assert!(have.serves_at_once(have));
            for want in every().filter(|&want| have.serves_at_once(want)) {
                assert!(have.serves(want), "{have:?} {want:?}");
                at_once += 1;
            }
        }
        assert!(at_once > 64);
        let unknown = Access::from_bits_retain(1 << 30);
        assert!(!Access::all().serves_at_once(unknown));
        assert!(!unknown.serves_at_once(Access::empty()));
    }

    fn every() -> impl Iterator<Item = Access> + Clone {
        (0..64).map(|subset: u32| {
            Access::all()
                .iter()
                .enumerate()
                .filter(|(bit, _)| subset & (1 << bit) != 0)
                .map(|(_, flag)| flag)
                .collect()
        })
    }

    #[test]
    fn serving_is_reflexive_and_transitive() {
        assert!(every().all(|a| a.serves(a)));
        for a in every() {
            for b in every().filter(|&b| a.serves(b)) {
                assert!(
                    every().filter(|&c| b.serves(c)).all(|c| a.serves(c)),
                    "{a:?} {b:?}"
                );
            }
        }
    }

    #[test]
    fn more_permissions_serve_fewer_and_never_the_other_way() {
        let more = Access::LOCAL_WRITE | Access::REMOTE_READ;
        assert!(more.serves(Access::REMOTE_READ));
        assert!(more.serves(Access::empty()));
        assert!(!Access::REMOTE_READ.serves(more));
        assert!(!more.serves(Access::REMOTE_WRITE));
    }

    #[test]
    fn flags_that_are_no_permissions_must_be_the_same() {
        for flag in [Access::HUGETLB, Access::RELAXED_ORDERING] {
            assert!(!(Access::LOCAL_WRITE | flag).serves(Access::LOCAL_WRITE));
            assert!(!Access::LOCAL_WRITE.serves(Access::LOCAL_WRITE | flag));
            assert!((Access::LOCAL_WRITE | flag).serves(flag));
        }
    }

    #[test]
    fn a_peers_writes_imply_local_write() {
        for flag in [Access::REMOTE_WRITE, Access::REMOTE_ATOMIC] {
            assert_eq!(flag.with_implied(), flag | Access::LOCAL_WRITE);
            assert!(flag.serves(Access::LOCAL_WRITE));
            assert!(flag.serves(flag | Access::LOCAL_WRITE));
            assert!(flag.writes());
        }
        assert_eq!(Access::REMOTE_READ.with_implied(), Access::REMOTE_READ);
        assert!(!Access::REMOTE_READ.writes());
    }
}
