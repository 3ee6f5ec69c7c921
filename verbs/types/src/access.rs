//! [`Access`]: the operations that a registration allows.

bitflags::bitflags! {
    /// The operations that a registration allows. Work requests of this process may always read, so
    /// [`Access::empty`] is enough for the source of a send or of an RDMA write.
    ///
    /// The values are libibverbs's (`enum ibv_access_flags`).
    ///
    /// **[`REMOTE_WRITE`](Self::REMOTE_WRITE) and [`REMOTE_ATOMIC`](Self::REMOTE_ATOMIC) imply
    /// [`LOCAL_WRITE`](Self::LOCAL_WRITE)**, which the verbs require beside them. That is safe: it
    /// lets work requests of this process write to memory that a peer may write to. Without it, a
    /// missing flag would fail with `EINVAL` at the first transfer.
    ///
    /// # Flags that are missing
    ///
    /// - `ON_DEMAND` pins nothing: the device follows the page tables, so there is nothing to cache
    ///   and nothing that can go stale. A registrar must promise pinned pages.
    /// - `ZERO_BASED` makes the device's addresses differ from the process's. A cache hands one
    ///   registration to lookups of any range inside it, all of which address it by the process's
    ///   addresses.
    /// - `MW_BIND` lets the holder hang memory windows, with keys of their own, on a registration.
    ///   The device then refuses to deregister it, and the cache must be able to at any time.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// Work requests of this process may write: the destination of a receive or an RDMA read.
        const LOCAL_WRITE = 1;
        /// A peer may write (RDMA write).
        const REMOTE_WRITE = 1 << 1;
        /// A peer may read (RDMA read).
        const REMOTE_READ = 1 << 2;
        /// A peer may do atomic operations.
        const REMOTE_ATOMIC = 1 << 3;
        /// The memory consists of huge pages, and the device may rely on it. Not a permission.
        const HUGETLB = 1 << 7;
        /// The device may write to memory in any order. Not a permission. Kernels and devices that
        /// do not know it ignore it.
        const RELAXED_ORDERING = 1 << 20;
    }
}

impl Access {
    /// The permissions. A registration may have more of them than a lookup asks for.
    const PERMISSIONS: Self = Self::LOCAL_WRITE
        .union(Self::REMOTE_WRITE)
        .union(Self::REMOTE_READ)
        .union(Self::REMOTE_ATOMIC);

    /// Returns the flags with those that they imply, as the device gets them.
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

/// A registration with more permissions serves a lookup with fewer. Flags that are not permissions
/// must be equal.
///
/// A registration with [`RELAXED_ORDERING`](Access::RELAXED_ORDERING) does not serve a transfer
/// that relies on the order of its writes. A strict one could serve a transfer with relaxed
/// ordering, but more slowly, and the caller would not notice.
impl regcache::Access for Access {
    #[inline]
    fn serves(self, wanted: Self) -> bool {
        let have = self.with_implied().bits();
        let want = wanted.with_implied().bits();
        let permissions = Self::PERMISSIONS.bits();
        have & want & permissions == want & permissions && (have ^ want) & !permissions == 0
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
