/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * regcache: a memory-registration cache for RDMA that is never stale. See regcache(3).
 *
 * Functions that return an int return 0, or something that is not negative, or a negative errno; regcache_error() then has
 * the message. All may be called by any thread at any time, but not in a signal handler.
 *
 * A handle is checked by every function: one that was put or destroyed, that was never given out, or is of another kind
 * gives -EBADF, and NULL -EINVAL. In a child by fork the parent's caches give -ESTALE: it must make its own.
 */

#ifndef REGCACHE_H
#define REGCACHE_H

/* Generated from verbs/capi/src. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * This process's work requests may write: the destination of a receive or an RDMA read. Reading by them is
 * always allowed. The access flags have the values of `enum ibv_access_flags`.
 */
#define REGCACHE_LOCAL_WRITE 1

/**
 * A peer may write. Implies REGCACHE_LOCAL_WRITE.
 */
#define REGCACHE_REMOTE_WRITE 2

/**
 * A peer may read.
 */
#define REGCACHE_REMOTE_READ 4

/**
 * A peer may do atomic operations. Implies REGCACHE_LOCAL_WRITE.
 */
#define REGCACHE_REMOTE_ATOMIC 8

/**
 * The memory is made of huge pages, and the device may count on it.
 */
#define REGCACHE_HUGETLB 128

/**
 * The device's writes may reach memory in another order than it made them.
 */
#define REGCACHE_RELAXED_ORDERING (1 << 20)

/**
 * The best sound monitor that there is: ummunotify; else userfaultfd, from Linux 6.7 on; else none.
 */
#define REGCACHE_MONITOR_AUTO 0

/**
 * The ummunotify driver, or an error.
 */
#define REGCACHE_MONITOR_UMMUNOTIFY 1

/**
 * userfaultfd with a check at each lookup, or an error.
 */
#define REGCACHE_MONITOR_USERFAULTFD 2

/**
 * None: nothing is cached, each lookup registers.
 */
#define REGCACHE_MONITOR_NONE 3

/**
 * Deregister memory that was registered for remote access when its last guard is put, so that a key which a
 * peer was given ends there. Without it such registrations are kept like others.
 */
#define REGCACHE_REVOKE_REMOTE_KEYS 1

/**
 * No thread that releases freed memory: the application polls regcache_fd() and calls regcache_reap().
 */
#define REGCACHE_NO_REAPER 2

/**
 * A cache.
 */
struct regcache;

/**
 * A registration in use, from regcache_get() to regcache_put().
 */
struct regcache_guard;

/**
 * A protection domain of libibverbs's.
 */
struct ibv_pd;

/**
 * What a cache is to be like. Everything that is 0 is the default, so that it is enough to set what should not be,
 * as in `struct regcache_attr attr = { .size = sizeof attr, .max_entries = 1000 };`.
 */
struct regcache_attr {
        /**
         * sizeof(struct regcache_attr).
         */
        size_t size;
        /**
         * One of REGCACHE_MONITOR_*.
         */
        unsigned int monitor;
        /**
         * Any of REGCACHE_REVOKE_REMOTE_KEYS and REGCACHE_NO_REAPER.
         */
        unsigned int flags;
        /**
         * A cache whose monitor this one is to use as well, instead of one of its own: what both have registered is
         * watched once. Needed where two caches on userfaultfd are to keep the same memory.
         */
        struct regcache *monitor_of;
        /**
         * Registrations that are kept, at most; 65536, and no more than 16777216.
         */
        uint64_t max_entries;
        /**
         * Bytes that they may pin; as many as RLIMIT_MEMLOCK allows, and at most half of the memory.
         */
        uint64_t max_bytes;
        /**
         * Whole blocks of so many bytes are registered, a power of two; 1. They pin, and open to whoever has the key, what
         * the caller did not name.
         */
        uint64_t granularity;
        /**
         * On a miss, neighbours are registered in one piece of at most so many bytes; 0: they are not.
         */
        uint64_t merge_up_to;
};

/**
 * What a `reg_mr` gives.
 */
struct regcache_registration {
        /**
         * What `dereg_mr` will be given.
         */
        void *registration;
        /**
         * For struct regcache_mr.
         */
        uint32_t lkey;
        /**
         * For struct regcache_mr.
         */
        uint32_t rkey;
};

/**
 * A device other than libibverbs's.
 *
 * Both functions are called from whichever thread calls into the cache, and from the thread that releases freed
 * memory, in which all signals are blocked; several at once. They return 0 or an errno, negative or not. Calls with a
 * cache are refused in them (-EDEADLK), and they must not throw or longjmp.
 *
 * What `reg_mr` registers are the pages that are mapped in the range while it runs, all of them, and they must be kept
 * from being used otherwise until `dereg_mr`: a device that follows the page tables has nothing to cache.
 */
struct regcache_device {
        /**
         * sizeof(struct regcache_device).
         */
        size_t size;
        /**
         * What both functions get.
         */
        void *user;
        /**
         * Registers. Access flags beside the four permissions, from REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC, are
         * the device's own: a registration serves lookups that have the same.
         */
        int (*reg_mr)(void *user,
                      void *addr,
                      size_t length,
                      unsigned int access,
                      struct regcache_registration *registration);
        /**
         * Destroys a registration; its memory may be unmapped. If it fails the registration is counted as leaked.
         */
        int (*dereg_mr)(void *user, void *registration);
};

/**
 * What regcache_get() finds.
 */
struct regcache_mr {
        /**
         * To be given to regcache_put().
         */
        struct regcache_guard *guard;
        /**
         * What this process's work requests name the memory by.
         */
        uint32_t lkey;
        /**
         * What a peer's requests name it by; of use only with remote access.
         */
        uint32_t rkey;
        /**
         * The `struct ibv_mr *`, or what `reg_mr` gave. Not to be deregistered.
         */
        void *registration;
        /**
         * Where the registration starts: at the address asked for or before.
         */
        void *addr;
        /**
         * Bytes in it.
         */
        size_t length;
};

/**
 * What a cache has done and holds.
 */
struct regcache_stats {
        /**
         * Lookups served by a cached registration.
         */
        uint64_t hits;
        /**
         * Lookups for which a registration was made.
         */
        uint64_t misses;
        /**
         * Misses whose registration could not be kept: it ends with its guard.
         */
        uint64_t uncached;
        /**
         * Cached registrations given up because memory under them changed.
         */
        uint64_t invalidations;
        /**
         * Times that the monitor reported something and no registration was given up for it.
         */
        uint64_t spurious;
        /**
         * Cached registrations given up to make room.
         */
        uint64_t evictions;
        /**
         * Cached registrations given up because a wider one came.
         */
        uint64_t merges;
        /**
         * Registrations made again because their memory changed while they were being made.
         */
        uint64_t retries;
        /**
         * Registrations that the device refused to destroy.
         */
        uint64_t leaked;
        /**
         * Registrations held now: cached, being made, or waiting for their last guard.
         */
        uint64_t entries;
        /**
         * Bytes that they pin, whole pages counted.
         */
        uint64_t bytes;
        /**
         * Of the entries, those that were given up and wait for their last guard.
         */
        uint64_t unreleased;
        /**
         * Of the bytes, those pinned by them.
         */
        uint64_t unreleased_bytes;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes a cache of registrations in a protection domain. The domain must stay until the cache is destroyed. `attr` may be
 * NULL.
 */
int regcache_create(struct ibv_pd *pd,
                    const struct regcache_attr *attr,
                    struct regcache **cache);

/**
 * Makes a cache of the registrations of another device. What `device` points to is copied; `user` must stay until the
 * cache is destroyed. `attr` may be NULL.
 */
int regcache_create_for(const struct regcache_device *device,
                        const struct regcache_attr *attr,
                        struct regcache **cache);

/**
 * Finds a registration that covers the `length` bytes at `addr` and allows `access`, or makes one: never a stale one. It
 * covers the memory that is mapped there now, and no other, until the guard is put. Fills `*mr` in; on an
 * error with zeros.
 */
int regcache_get(struct regcache *cache,
                 const void *addr,
                 size_t length,
                 unsigned int access,
                 struct regcache_mr *mr);

/**
 * Ends the use of a registration, once the transfers that were posted with it are complete. In any thread. Each guard is to
 * be put once.
 */
int regcache_put(struct regcache_guard *guard);

/**
 * Gives up all registrations that cover any of the `length` bytes at `addr`: what is looked up from now on is registered
 * anew. There is no need to call this before memory is unmapped. Those that guards hold go with their last guard, for
 * which this waits `timeout_ms` milliseconds, or for ever if that is negative. How many are held even then is
 * in `*held`, which may be NULL.
 */
int regcache_invalidate(struct regcache *cache,
                        const void *addr,
                        size_t length,
                        int timeout_ms,
                        size_t *held);

/**
 * Gives up all registrations, as regcache_invalidate() does those of a range.
 */
int regcache_flush(struct regcache *cache, int timeout_ms, size_t *held);

/**
 * Reads the counters. `size` is sizeof(struct regcache_stats).
 */
int regcache_query_stats(struct regcache *cache, struct regcache_stats *stats, size_t size);

/**
 * A descriptor that polls readable when regcache_reap() has something to do, for an event loop. There is nothing to be read
 * from it; it is the cache's, and goes with it. -EOPNOTSUPP if the monitor has none.
 */
int regcache_fd(struct regcache *cache);

/**
 * Releases what the monitor reports to have been unmapped, without waiting for a lookup to do it. Of use with
 * REGCACHE_NO_REAPER.
 */
int regcache_reap(struct regcache *cache);

/**
 * Destroys the cache and all its registrations; from then on no callback is called, and the protection domain can be
 * deallocated. -EBUSY if guards are still out: the cache then stays, and regcache_error() says how many. Waits for other threads
 * that are in a call with it.
 */
int regcache_destroy(struct regcache *cache);

/**
 * The monitor that the cache uses: "ummunotify", "userfaultfd" or "nothing", which is that nothing is cached. NULL if this is
 * no cache.
 */
const char *regcache_monitor_name(struct regcache *cache);

/**
 * What the last call that failed in this thread failed for, in English and with advice. Never NULL. Stays as it is until the
 * next call that fails in this thread.
 */
const char *regcache_error(void);

/**
 * The library's version, such as "0.1.0".
 */
const char *regcache_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* REGCACHE_H */
