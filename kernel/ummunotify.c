// SPDX-License-Identifier: GPL-2.0-only
/*
 * ummunotify - tell user space when the mapping of its memory changes
 *
 * A library that registers memory with an RDMA adapter, and keeps the
 * registration for the next transfer, must know when the pages at those
 * addresses are no longer the ones that the adapter has pinned. This driver
 * tells it. A process opens /dev/ummunotify and names the ranges of its own
 * address space that it wants watched. It compares a 64-bit generation counter,
 * in a page that it has mapped, to find out that a range was invalidated, and
 * calls read() to find out which one.
 *
 * There is no queue. A range has one state, and a hint where it was
 * invalidated. Whatever happens between two reads, memory stays what it was.
 *
 * Order
 * -----
 * An invalidation is recorded, and the counter raised, in the MMU notifier's
 * invalidate_range_start(), which is before the first page table entry goes.
 * The task that changes the mapping does this itself. So the counter has moved
 * before its system call returns, and before it lets go of the locks that keep
 * others from mapping something new at the address.
 *
 * An invalidation is in flight from its start to its end. Its page table
 * entries may still be there, and somebody may pin pages that are about to go.
 * There are two such races, and one rule against both.
 *
 * Early register: the range is registered while the invalidation is in flight.
 * The start has not found the range, because it was not there.
 *
 *	CPU 0: madvise(MADV_DONTNEED)	CPU 1: REGISTER_REGION, then ibv_reg_mr()
 *	=============================	=========================================
 *	invalidate_range_start()
 *					add the range
 *					wait for the end
 *	zap the page table entries
 *	invalidate_range_end()
 *	  wake CPU 1
 *					return; pin the new pages
 *
 * Early read: the report is read while the invalidation is in flight. The
 * reader registers its memory again, under the same watch.
 *
 *	CPU 0: madvise(MADV_DONTNEED)	CPU 1: read(), then ibv_reg_mr()
 *	=============================	================================
 *	invalidate_range_start()
 *	  the range is invalidated
 *					read(): the range is valid again, and
 *					reported early; so is the invalidation
 *					pin the old pages
 *	zap the page table entries
 *	invalidate_range_end()
 *	  the range is invalidated
 *	  again, the counter raised
 *					compare the counter, read() again
 *
 * The rule: while an invalidation is in flight, each range that it overlaps and
 * matters to is in one of three states.
 *
 * - It is a pending registration: REGISTER_REGION has not returned, and waits
 *   for the end of this invalidation. ummunotify_wait_for_older()
 * - It is waiting to be reported. ummunotify_invalidate()
 * - It was reported early, and the invalidation knows that. Its end makes the
 *   range wait to be reported once more. ummunotify_report()
 *
 * So pages that were pinned before the end are reported after it. Reading does
 * not wait for the end instead, because it takes seconds to unmap many
 * gigabytes. In-flight invalidations are kept in as many slots as a long has
 * bits. Those that find no slot are counted, and known by their hull only. This
 * makes more registrations wait and more reports early than need be, and never
 * fewer. An end without a start, which only a bug elsewhere in mm can bring
 * about, is ignored: it takes nothing away from an invalidation that has a slot.
 *
 * Cost
 * ----
 * The task that invalidates pays, and it need not be the owner: kswapd,
 * kcompactd, ksmd, or another process that truncates a file. So an invalidation
 * visits only ranges whose state it changes. A range that was invalidated more
 * than once since its last report is saturated: one more invalidation changes
 * nothing but the counter. Saturated ranges are in trees of their own, of which
 * an invalidation asks only whether it meets one of them. Each visit is paid for
 * by a registration or a report, of which each allows two. An end that visits
 * ranges again visits those that its own start has invalidated for the first
 * time, and those that were registered or read since.
 *
 * Why not mmu_interval_notifier
 * -----------------------------
 * It is made for drivers that keep a few ranges and stop their device in the
 * callback. Here it would not do:
 *
 * - It has no callback for the end. An early read could not be repeated; user
 *   space would have to hold a sequence number for each range, and ask the
 *   kernel about it after each registration.
 * - mmu_interval_read_begin() and mmu_interval_notifier_remove() wait while any
 *   invalidation that meets any interval of the mm is in flight. A process that
 *   unmaps all the time would have its registrations wait for unrelated work.
 * - It calls back for each interval that an invalidation overlaps, every time.
 *   With 65 536 unread ranges over a process's memory that makes reclaim 193
 *   times slower: an earlier version of this driver, which visited every
 *   overlapping range as well, took 11 370 us a page against 59. Here two visits
 *   to each range are left, once: 81 us a page, or 111 while they are made,
 *   against 62 to 77 without a range (4 MB, emulated).
 * - The counter rises once for each invalidation. Interval callbacks do not say
 *   where one invalidation ends and the next begins.
 * - An interval takes 88 bytes where an interval tree node takes 48.
 *
 * The idea is taken from it: remember the invalidations that were in flight
 * first, and wait for these.
 *
 * The notifier belongs to the file and not to the mm. Processes have one or two
 * files, and a notifier for each mm would add a lock and a list to each
 * invalidation to save them one callback.
 *
 * Locks
 * -----
 * ummunotify_file.lock is a spinlock, taken by the notifier callbacks. Nothing
 * under it sleeps, allocates or touches user memory.
 *
 * ummunotify_file.deliver is a mutex around the time in which events are off
 * the list and on their way to a user buffer. It makes UNREGISTER_REGION wait
 * for a read() that has already picked up the event, and lets a read() whose
 * buffer faults put its events back. The callbacks never take it.
 *
 * ummunotify_file.attach is a mutex around registering the notifier.
 *
 * deliver nests outside mmap_lock, which a fault takes, and outside lock.
 * attach nests outside mmap_lock.
 *
 * On PREEMPT_RT lock is a lock that sleeps. mm calls the callbacks in task
 * context with preemption enabled, so that they may. Its holder needs nobody
 * else to get on, so that a callback which must not block still ends soon. Only
 * CONFIG_DEBUG_ATOMIC_SLEEP complains about the OOM reaper there, as it does
 * about KVM's callbacks.
 *
 * open() runs under the mutex of all misc devices. So it takes no lock of the
 * address space. The notifier is registered with the first range.
 *
 * Memory
 * ------
 * The memory that a process makes the driver allocate is charged to its memory
 * cgroup, and bounded for each user over all files: struct ummunotify_user. A
 * process that is refused memory is told ENOMEM. UMMUNOTIFY_GFP gives up early:
 * a range is not worth to push the machine to where others are killed.
 */

#include <linux/atomic.h>
#include <linux/compat.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/interval_tree.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/personality.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/user_namespace.h>
#include <linux/wait.h>
#include <linux/ummunotify.h>

#include "compat.h"

static unsigned long max_user_regions;
module_param(max_user_regions, ulong, 0644);
MODULE_PARM_DESC(max_user_regions, "Most ranges that one user may watch (default: 4% of memory)");

#define UMMUNOTIFY_GFP	(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

static struct kmem_cache *ummunotify_region_cache;

/* How often a range was invalidated since it was last reported. */
enum ummunotify_state {
	UMMUNOTIFY_VALID,
	UMMUNOTIFY_INVALIDATED_ONCE,	/* hint_start and hint_last say where */
	UMMUNOTIFY_SATURATED,		/* more than once */
};

/**
 * struct ummunotify_region - a watched range
 * @itree: node of the tree that ummunotify_tree() says; its bounds are inclusive
 * @by_cookie: node of its tree in ummunotify_file.cookies
 * @invalid: on ummunotify_file.invalid unless @state is UMMUNOTIFY_VALID
 * @cookie: the caller's name for the range
 * @id: names the region among all that the file has ever had
 * @hint_start: first byte invalidated, if invalidated once
 * @hint_last: last byte invalidated, if invalidated once
 * @state: tells read() what to report
 * @protection: changes of protection invalidate it as well
 * @reported_early: reported while an invalidation of it was in flight
 *
 * Belongs to one file. All but the constant bounds, cookie, id and protection is
 * guarded by ummunotify_file.lock. It is freed under ummunotify_file.deliver as
 * well, so that a reader may hold on to it between picking it up and delivering
 * it.
 */
struct ummunotify_region {
	struct interval_tree_node itree;
	struct rb_node by_cookie;
	struct list_head invalid;
	u64 cookie;
	u64 id;
	unsigned long hint_start;
	unsigned long hint_last;
	u8 state;
	bool protection;
	bool reported_early;
};

/**
 * struct ummunotify_in_flight - an invalidation between its start and its end
 * @task: the task that makes it; start and end are called by the same task
 * @start: first byte
 * @last: last byte
 * @serial: its place in the order of starts
 * @protection: it changes what may be done with the pages, not which they are
 * @reported_early: a region that it invalidated was read since
 */
struct ummunotify_in_flight {
	struct task_struct *task;
	unsigned long start;
	unsigned long last;
	u64 serial;
	bool protection;
	bool reported_early;
};

#define UMMUNOTIFY_IN_FLIGHT_MAX	BITS_PER_LONG

/*
 * Cookies are spread over so many trees, each seven levels lower for it. This
 * keeps registering and unregistering among 100 000 ranges within 1.4 of what
 * it costs with one.
 */
#define UMMUNOTIFY_COOKIE_BITS	7

/**
 * struct ummunotify_user - the user who answers for some open files
 * @node: on ummunotify_users
 * @uid: as the initial user namespace has it
 * @files: how many; guarded by ummunotify_users_lock
 * @charged: in ranges, what the files take
 *
 * Ucounts would do the same, and are not for modules. RLIMIT_MEMLOCK is no
 * measure: it is infinite where RDMA is used, and 64 KiB in many containers.
 */
struct ummunotify_user {
	struct hlist_node node;
	kuid_t uid;
	unsigned int files;
	atomic_long_t charged;
};

static DEFINE_HASHTABLE(ummunotify_users, 6);
static DEFINE_SPINLOCK(ummunotify_users_lock);

/**
 * struct ummunotify_file - one open file, watching the mm that opened it
 * @mn: registered with @mm from the first range to release
 * @lock: guards everything from here to @in_flight
 * @untracked: in-flight invalidations for which @in_flight had no slot
 * @gap_start: no region meets the bytes from here to @gap_last, where the last
 *	invalidations were that met none
 * @gap_last: less than @gap_start if no such gap is known
 * @in_flight_slots: which elements of @in_flight are in use
 * @serial: of the next invalidation to start
 * @watched: regions that an invalidation would change, by address; those that
 *	changes of protection invalidate apart from the others
 * @saturated: regions that it would not change, likewise
 * @counter: the generation
 * @shared: @counter as user space sees it; never read by the kernel
 * @invalid: regions to report, oldest invalidation first
 * @last_owed: an INVAL was delivered and no LAST since
 * @untracked_early: a region was read since the first of the untracked started
 * @nr_regions: how many there are
 * @untracked_start: first byte that an untracked invalidation overlaps
 * @untracked_last: last byte that one overlaps
 * @next_id: of the next region
 * @cookies: all regions by cookie, see ummunotify_cookies()
 * @in_flight: the invalidations in flight
 * @ended: tasks that wait for an invalidation to end
 * @readable: tasks that wait for something to read
 * @async: files that want SIGIO
 * @deliver: see above
 * @attach: see above
 * @mm: held by mm_count, so that neither can a descriptor keep dead memory, nor
 *	its address come to mean another mm
 * @user: the user who answers for the file
 * @attached: @mn is registered
 * @used: EXCHANGE_FEATURES is no longer possible; needs no lock, because two
 *	threads that both exchange are both granted nothing
 *
 * The fields that each invalidation touches come first.
 */
struct ummunotify_file {
	struct mmu_notifier mn;

	spinlock_t lock;
	unsigned int untracked;
	unsigned long gap_start;
	unsigned long gap_last;
	unsigned long in_flight_slots;
	u64 serial;
	wait_queue_head_t ended;
	struct rb_root_cached watched[2];
	struct rb_root_cached saturated[2];
	u64 counter;
	u64 *shared;
	struct list_head invalid;
	bool last_owed;
	bool untracked_early;
	unsigned int nr_regions;
	unsigned long untracked_start;
	unsigned long untracked_last;
	u64 next_id;
	struct ummunotify_in_flight in_flight[UMMUNOTIFY_IN_FLIGHT_MAX];
	struct rb_root cookies[BIT(UMMUNOTIFY_COOKIE_BITS)];

	wait_queue_head_t readable;
	struct fasync_struct *async;
	struct mutex deliver;
	struct mutex attach;
	struct mm_struct *mm;
	struct ummunotify_user *user;
	bool attached;
	bool used;
};

/* A file takes as much memory as so many ranges. */
#define UMMUNOTIFY_FILE_WEIGHT \
	DIV_ROUND_UP(sizeof(struct ummunotify_file) + PAGE_SIZE, sizeof(struct ummunotify_region))

static void ummunotify_mark_used(struct ummunotify_file *file)
{
	WRITE_ONCE(file->used, true);
}

/*
 * The memory of the mm that opened the file is not for others, wherever the
 * descriptor may have gone. Threads and CLONE_VM children share the mm.
 */
static bool ummunotify_is_owner(const struct ummunotify_file *file)
{
	return current->mm == file->mm;
}

/* Users, and what they may have */

/*
 * The uid that answers for the caller. Users can make namespaces, and in them
 * be as many users as they like; all of these are the user who made the
 * outermost one.
 */
static kuid_t ummunotify_current_uid(void)
{
	struct user_namespace *ns = current_user_ns();
	kuid_t uid = current_uid();

	for (; ns != &init_user_ns; ns = ns->parent)
		uid = ns->owner;
	return uid;
}

static struct ummunotify_user *ummunotify_get_user(void)
{
	struct ummunotify_user *user, *new;
	kuid_t uid = ummunotify_current_uid();

	new = kzalloc_obj(*new, UMMUNOTIFY_GFP);
	if (!new)
		return NULL;
	new->uid = uid;
	spin_lock(&ummunotify_users_lock);
	hash_for_each_possible(ummunotify_users, user, node, __kuid_val(uid)) {
		if (uid_eq(user->uid, uid))
			goto found;
	}
	hash_add(ummunotify_users, &new->node, __kuid_val(uid));
	user = new;
	new = NULL;
found:
	user->files++;
	spin_unlock(&ummunotify_users_lock);
	kfree(new);
	return user;
}

static void ummunotify_put_user(struct ummunotify_user *user)
{
	bool last;

	spin_lock(&ummunotify_users_lock);
	last = !--user->files;
	if (last)
		hash_del(&user->node);
	spin_unlock(&ummunotify_users_lock);
	if (last)
		kfree(user);
}

/* Returns false if the user has too much already. */
static bool ummunotify_charge(struct ummunotify_user *user, unsigned long ranges)
{
	if (atomic_long_add_return(ranges, &user->charged) <= READ_ONCE(max_user_regions))
		return true;
	atomic_long_sub(ranges, &user->charged);
	return false;
}

static void ummunotify_uncharge(struct ummunotify_user *user, unsigned long ranges)
{
	atomic_long_sub(ranges, &user->charged);
}

/* In-flight invalidations */

static void ummunotify_in_flight_add(struct ummunotify_file *file, unsigned long start,
				     unsigned long last, bool protection)
{
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	if (unlikely(file->in_flight_slots == ~0UL)) {
		if (!file->untracked++) {
			file->untracked_start = start;
			file->untracked_last = last;
		}
		file->untracked_start = min(file->untracked_start, start);
		file->untracked_last = max(file->untracked_last, last);
		return;
	}
	slot = ffz(file->in_flight_slots);
	file->in_flight_slots |= BIT(slot);
	file->in_flight[slot] = (struct ummunotify_in_flight) {
		.task = current,
		.start = start,
		.last = last,
		.serial = file->serial++,
		.protection = protection,
	};
}

/* Returns true if the invalidation was reported early. */
static bool ummunotify_in_flight_del(struct ummunotify_file *file,
				     unsigned long start, unsigned long last)
{
	const struct ummunotify_in_flight *mine = NULL;
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	/*
	 * A task may be in several invalidations at once, even with the same
	 * bounds (munmap() of a hugetlb mapping). They are nested, so that the
	 * youngest ends first.
	 */
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		const struct ummunotify_in_flight *it = &file->in_flight[slot];

		if (it->task == current && it->start == start && it->last == last &&
		    (!mine || it->serial > mine->serial))
			mine = it;
	}
	if (mine) {
		file->in_flight_slots &= ~BIT(mine - file->in_flight);
		return mine->reported_early;
	}
	/* An end that is not one of these has no start. */
	if (!file->untracked || start < file->untracked_start || last > file->untracked_last)
		return false;
	/* Which of them was reported early is not known. */
	if (!--file->untracked && file->untracked_early) {
		file->untracked_early = false;
		return true;
	}
	return file->untracked_early;
}

static bool ummunotify_overlaps_untracked(const struct ummunotify_file *file,
					  unsigned long start, unsigned long last)
{
	return file->untracked && file->untracked_start <= last && start <= file->untracked_last;
}

/* A region is being reported: so are the in-flight invalidations of it. */
static void ummunotify_report(struct ummunotify_file *file, struct ummunotify_region *region)
{
	unsigned long start = region->itree.start, last = region->itree.last;
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	region->reported_early = false;
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		struct ummunotify_in_flight *it = &file->in_flight[slot];

		if (it->start <= last && start <= it->last &&
		    (region->protection || !it->protection)) {
			region->reported_early = true;
			it->reported_early = true;
		}
	}
	if (ummunotify_overlaps_untracked(file, start, last)) {
		region->reported_early = true;
		file->untracked_early = true;
	}
}

/**
 * struct ummunotify_pending - a registration that has not returned
 * @start: first byte
 * @last: last byte
 * @cookie: the region's
 * @id: the region's; it may be gone, because somebody unregisters it
 * @protection: changes of protection invalidate it as well
 * @serial: of the first invalidation that was sure to find it
 */
struct ummunotify_pending {
	unsigned long start;
	unsigned long last;
	u64 cookie;
	u64 id;
	bool protection;
	u64 serial;
};

/* Is an invalidation in flight that matters, and started before the region was there? */
static bool ummunotify_older_in_flight(struct ummunotify_file *file,
				       const struct ummunotify_pending *pending)
{
	unsigned long slot;
	bool found;

	spin_lock(&file->lock);
	/* Of those without a slot the age is not known. */
	found = ummunotify_overlaps_untracked(file, pending->start, pending->last);
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		const struct ummunotify_in_flight *it = &file->in_flight[slot];

		found |= it->serial < pending->serial &&
			 it->start <= pending->last && pending->start <= it->last &&
			 (pending->protection || !it->protection);
	}
	spin_unlock(&file->lock);
	return found;
}

/*
 * Wait for the invalidations that had started before a region became visible to
 * them. Later ones are not waited for, so that a process that unmaps all the
 * time cannot keep a range from being registered, unless it does so in more
 * than UMMUNOTIFY_IN_FLIGHT_MAX threads at once. The caller holds no lock that
 * an invalidation could want.
 */
static int ummunotify_wait_for_older(struct ummunotify_file *file,
				     const struct ummunotify_pending *pending)
{
	return wait_event_interruptible(file->ended, !ummunotify_older_in_flight(file, pending));
}

/* The MMU notifier */

enum ummunotify_kind {
	UMMUNOTIFY_IGNORED,	/* matters to no region */
	UMMUNOTIFY_PROTECTION,	/* changes what may be done with the pages */
	UMMUNOTIFY_MAPPING,	/* puts other pages behind the addresses */
};

/*
 * mprotect(), NUMA balancing, fork() in the parent and write-protection for
 * dirty tracking keep the pages. Kinds not known here count as changes of the
 * mapping: a report too many costs time, one too few costs data.
 */
static enum ummunotify_kind ummunotify_kind(enum mmu_notifier_event event)
{
	switch (event) {
	case MMU_NOTIFY_SOFT_DIRTY:
		return UMMUNOTIFY_IGNORED;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
		return UMMUNOTIFY_PROTECTION;
	default:
		return UMMUNOTIFY_MAPPING;
	}
}

/*
 * mprotect() and NUMA balancing do not announce the end of what started at
 * address 0: a start of 0 is their mark for nothing having been announced yet
 * (change_pmd_range(), later change_pud_range()).
 */
static bool ummunotify_has_end(const struct mmu_notifier_range *range)
{
	return range->start || range->event != MMU_NOTIFY_PROTECTION_VMA;
}

/* The tree that a region is in. */
static struct rb_root_cached *ummunotify_tree(struct ummunotify_file *file,
					      const struct ummunotify_region *region)
{
	return region->state == UMMUNOTIFY_SATURATED ? &file->saturated[region->protection] :
						       &file->watched[region->protection];
}

static void ummunotify_set_state(struct ummunotify_file *file, struct ummunotify_region *region,
				 enum ummunotify_state state)
{
	struct rb_root_cached *from, *to;

	lockdep_assert_held(&file->lock);

	from = ummunotify_tree(file, region);
	region->state = state;
	to = ummunotify_tree(file, region);
	if (from != to) {
		interval_tree_remove(&region->itree, from);
		interval_tree_insert(&region->itree, to);
	}
}

/* Returns true if the region was not already waiting to be reported. */
static bool ummunotify_invalidate(struct ummunotify_file *file,
				  struct ummunotify_region *region,
				  unsigned long start, unsigned long last)
{
	lockdep_assert_held(&file->lock);

	if (region->state != UMMUNOTIFY_VALID) {
		ummunotify_set_state(file, region, UMMUNOTIFY_SATURATED);
		return false;
	}
	ummunotify_set_state(file, region, UMMUNOTIFY_INVALIDATED_ONCE);
	region->hint_start = max(start, region->itree.start);
	region->hint_last = min(last, region->itree.last);
	list_add_tail(&region->invalid, &file->invalid);
	return true;
}

static void ummunotify_raise_counter(struct ummunotify_file *file)
{
	lockdep_assert_held(&file->lock);

	WRITE_ONCE(*file->shared, ++file->counter);
	/* For data caches that alias. */
	flush_dcache_page(virt_to_page(file->shared));
}

/*
 * Does an invalidation stay within the part of the address space that is known
 * to be unwatched? A process unmaps the same places again and again, and mostly
 * not those that it watches, so that this saves most searches.
 */
static bool ummunotify_in_gap(const struct ummunotify_file *file,
			      unsigned long start, unsigned long last)
{
	return file->gap_start <= start && last <= file->gap_last;
}

/* No region meets the bytes. */
static void ummunotify_add_gap(struct ummunotify_file *file,
			       unsigned long start, unsigned long last)
{
	/* Both meet, or one follows the other. */
	if (start - 1 <= file->gap_last && file->gap_start - 1 <= last) {
		file->gap_start = min(file->gap_start, start);
		file->gap_last = max(file->gap_last, last);
	} else {
		file->gap_start = start;
		file->gap_last = last;
	}
}

/* A region takes its place. */
static void ummunotify_end_gap(struct ummunotify_file *file,
			       unsigned long start, unsigned long last)
{
	if (start <= file->gap_last && file->gap_start <= last) {
		file->gap_start = 1;
		file->gap_last = 0;
	}
}

/*
 * Record an invalidation that meets a region. Returns true if there is more to
 * read than before. Not inline, for the sake of the many that meet none.
 *
 * Trees are indexed by whether changes of protection matter to their regions. So
 * an invalidation of protection alone begins with the second.
 */
static noinline bool ummunotify_record_met(struct ummunotify_file *file, unsigned long start,
					   unsigned long last, bool protection)
{
	struct interval_tree_node *node, *next;
	bool more = false;
	int kind;

	lockdep_assert_held(&file->lock);

	for (kind = protection; kind <= 1; kind++) {
		node = interval_tree_iter_first(&file->watched[kind], start, last);
		for (; node; node = next) {
			next = interval_tree_iter_next(node, start, last);
			more |= ummunotify_invalidate(file,
				container_of(node, struct ummunotify_region, itree), start, last);
		}
	}
	ummunotify_raise_counter(file);
	return more;
}

/* Record an invalidation. Returns true if there is more to read than before. */
static bool ummunotify_record(struct ummunotify_file *file, unsigned long start,
			      unsigned long last, bool protection)
{
	int kind;

	lockdep_assert_held(&file->lock);

	if (ummunotify_in_gap(file, start, last))
		return false;
	for (kind = protection; kind <= 1; kind++) {
		if (interval_tree_iter_first(&file->watched[kind], start, last) ||
		    interval_tree_iter_first(&file->saturated[kind], start, last))
			return ummunotify_record_met(file, start, last, protection);
	}
	if (!protection)
		ummunotify_add_gap(file, start, last);
	return false;
}

/*
 * Record the end of an invalidation for the regions that were reported early.
 * Returns true if there is more to read than before. Saturated regions are
 * waiting to be reported, after the end now.
 */
static noinline bool ummunotify_record_again(struct ummunotify_file *file,
					     unsigned long start, unsigned long last,
					     bool protection)
{
	struct interval_tree_node *node;
	bool more = false;
	int kind;

	lockdep_assert_held(&file->lock);

	for (kind = protection; kind <= 1; kind++) {
		node = interval_tree_iter_first(&file->watched[kind], start, last);
		for (; node; node = interval_tree_iter_next(node, start, last)) {
			struct ummunotify_region *region =
				container_of(node, struct ummunotify_region, itree);

			if (region->reported_early && region->state == UMMUNOTIFY_VALID)
				more |= ummunotify_invalidate(file, region, start, last);
			region->reported_early = false;
		}
	}
	if (more)
		ummunotify_raise_counter(file);
	return more;
}

static void ummunotify_wake_readers(struct ummunotify_file *file)
{
	/* Pairs with the barrier in wait_event(): they see the list, or we see them. */
	if (wq_has_sleeper(&file->readable))
		wake_up_interruptible_poll(&file->readable, EPOLLIN | EPOLLRDNORM);
}

static noinline void ummunotify_notify(struct ummunotify_file *file)
{
	ummunotify_wake_readers(file);
	kill_fasync(&file->async, SIGIO, POLL_IN);
}

/*
 * Waits for nothing but the lock, so that it makes no difference whether the
 * range is blockable, and never fails.
 */
static int ummunotify_invalidate_start(struct mmu_notifier *mn,
				       const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool protection = kind == UMMUNOTIFY_PROTECTION;
	bool more;

	if (kind == UMMUNOTIFY_IGNORED)
		return 0;

	spin_lock(&file->lock);
	if (likely(ummunotify_has_end(range)))
		ummunotify_in_flight_add(file, start, last, protection);
	more = ummunotify_record(file, start, last, protection);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_notify(file);
	return 0;
}

static void ummunotify_invalidate_end(struct mmu_notifier *mn,
				      const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool more = false;

	if (kind == UMMUNOTIFY_IGNORED || unlikely(!ummunotify_has_end(range)))
		return;

	spin_lock(&file->lock);
	if (unlikely(ummunotify_in_flight_del(file, start, last)))
		more = ummunotify_record_again(file, start, last,
					       kind == UMMUNOTIFY_PROTECTION);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_notify(file);
	/* Pairs with the barrier in wait_event(): the slot is free, or we see the waiter. */
	if (wq_has_sleeper(&file->ended))
		wake_up_all(&file->ended);
}

/*
 * The address space goes: its last user exits, or executes another program. No
 * invalidation is announced from here on, so that this is the one for all that
 * is unmapped now. A child that inherited a mapping of the counter can see it.
 * Nobody is woken, because nobody who may read is left; and a program that was
 * executed must not have the SIGIO of the one before it.
 */
static void ummunotify_mm_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);

	spin_lock(&file->lock);
	ummunotify_record(file, 0, ULONG_MAX, false);
	spin_unlock(&file->lock);
}

static const struct mmu_notifier_ops ummunotify_mn_ops = {
	.invalidate_range_start	= ummunotify_invalidate_start,
	.invalidate_range_end	= ummunotify_invalidate_end,
	.release		= ummunotify_mm_release,
};

/*
 * Register the notifier, if this has not been done yet. The caller is the
 * owner, so that the address space has a user.
 *
 * This takes every lock that an invalidation of this mm could be under, so that
 * each end that comes later has had its start counted. mm_take_all_locks()
 * gives up whenever a signal is pending. Signals that do not kill are blocked
 * meanwhile: a profiler's timer could keep it from ending at all where there are
 * many mappings.
 */
static int ummunotify_attach(struct ummunotify_file *file)
{
	sigset_t most, before;
	int ret = 0;

	/* Pairs with the release below: the notifier is there. */
	if (smp_load_acquire(&file->attached))
		return 0;
	if (mutex_lock_killable(&file->attach))
		return -EINTR;
	if (!file->attached) {
		siginitsetinv(&most, sigmask(SIGKILL));
		sigprocmask(SIG_BLOCK, &most, &before);
		ret = mmu_notifier_register(&file->mn, file->mm);
		sigprocmask(SIG_SETMASK, &before, NULL);
		if (!ret) {
			/* Pairs with the acquire above. */
			smp_store_release(&file->attached, true);
		}
	}
	mutex_unlock(&file->attach);
	/* It is killed, or has work of io_uring to do first. */
	return ret == -EINTR ? -ERESTARTNOINTR : ret;
}

/* read and poll */

static bool ummunotify_is_readable(struct ummunotify_file *file)
{
	bool readable;

	spin_lock(&file->lock);
	readable = !list_empty(&file->invalid) || file->last_owed;
	spin_unlock(&file->lock);
	return readable;
}

/* Big enough to make the lock cheap, small enough for the stack. */
#define UMMUNOTIFY_BATCH	12

struct ummunotify_batch {
	struct ummunotify_event event[UMMUNOTIFY_BATCH];
	/* of which each event tells; LAST has none */
	struct ummunotify_region *region[UMMUNOTIFY_BATCH];
	size_t len;
};

/*
 * Take up to @max events off the list. LAST comes where the list has run
 * empty, with the counter of that very moment.
 */
static void ummunotify_pick_up(struct ummunotify_file *file,
			       struct ummunotify_batch *batch, size_t max)
{
	struct ummunotify_region *region, *next;
	size_t n = 0;

	lockdep_assert_held(&file->deliver);

	max = min_t(size_t, max, UMMUNOTIFY_BATCH);
	spin_lock(&file->lock);
	list_for_each_entry_safe(region, next, &file->invalid, invalid) {
		bool once = region->state == UMMUNOTIFY_INVALIDATED_ONCE;

		if (n == max)
			break;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_INVAL,
			.flags = once ? UMMUNOTIFY_EVENT_FLAG_HINT : 0,
			.hint_start = once ? region->hint_start : region->itree.start,
			.hint_end = (once ? region->hint_last : region->itree.last) + 1,
			.user_cookie_counter = region->cookie,
		};
		batch->region[n++] = region;
		ummunotify_set_state(file, region, UMMUNOTIFY_VALID);
		list_del(&region->invalid);
		ummunotify_report(file, region);
	}
	if (n)
		file->last_owed = true;
	if (n < max && file->last_owed) {
		file->last_owed = false;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_LAST,
			.user_cookie_counter = file->counter,
		};
		batch->region[n++] = NULL;
	}
	spin_unlock(&file->lock);
	batch->len = n;
}

/* Undo ummunotify_pick_up(), keeping what has happened since. */
static void ummunotify_put_back(struct ummunotify_file *file,
				const struct ummunotify_batch *batch,
				bool last_was_owed)
{
	size_t i = batch->len;

	lockdep_assert_held(&file->deliver);

	spin_lock(&file->lock);
	while (i--) {
		const struct ummunotify_event *event = &batch->event[i];
		struct ummunotify_region *region = batch->region[i];

		if (!region)
			continue;
		if (region->state != UMMUNOTIFY_VALID) {
			ummunotify_set_state(file, region, UMMUNOTIFY_SATURATED);
			continue;
		}
		ummunotify_set_state(file, region, event->flags & UMMUNOTIFY_EVENT_FLAG_HINT ?
				     UMMUNOTIFY_INVALIDATED_ONCE : UMMUNOTIFY_SATURATED);
		region->hint_start = event->hint_start;
		region->hint_last = event->hint_end - 1;
		list_add(&region->invalid, &file->invalid);
	}
	file->last_owed = last_was_owed;
	spin_unlock(&file->lock);

	/* No SIGIO: its handler may be what has passed the bad buffer. */
	ummunotify_wake_readers(file);
}

/* Returns bytes delivered, 0 if there is nothing to deliver, or -EFAULT. */
static ssize_t ummunotify_deliver(struct ummunotify_file *file,
				  struct iov_iter *to, size_t max)
{
	struct ummunotify_batch batch;
	size_t done = 0;

	lockdep_assert_held(&file->deliver);

	while (done < max) {
		/* Only written under deliver, so this is what it was at pick-up. */
		bool last_was_owed = READ_ONCE(file->last_owed);
		size_t bytes, copied;

		ummunotify_pick_up(file, &batch, max - done);
		if (!batch.len)
			break;
		bytes = batch.len * sizeof(batch.event[0]);
		copied = copy_to_iter(batch.event, bytes, to);
		if (copied != bytes) {
			iov_iter_revert(to, copied);
			ummunotify_put_back(file, &batch, last_was_owed);
			if (!done)
				return -EFAULT;
			break;
		}
		done += batch.len;
		/* A LAST ends it, or a busy process could keep one read going for ever. */
		if (!batch.region[batch.len - 1] || fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return done * sizeof(batch.event[0]);
}

static ssize_t ummunotify_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *filp = iocb->ki_filp;
	struct ummunotify_file *file = filp->private_data;
	size_t max = iov_iter_count(to) / sizeof(struct ummunotify_event);
	bool nowait = iocb->ki_flags & IOCB_NOWAIT;
	ssize_t ret;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (!max)
		return -EINVAL;
	ummunotify_mark_used(file);

	for (;;) {
		/*
		 * With O_NONBLOCK alone, wait for another reader: that EAGAIN
		 * says that no range is invalid.
		 */
		if (nowait) {
			if (!mutex_trylock(&file->deliver))
				return -EAGAIN;
		} else if (mutex_lock_interruptible(&file->deliver)) {
			return -ERESTARTSYS;
		}
		ret = ummunotify_deliver(file, to, max);
		mutex_unlock(&file->deliver);
		if (ret)
			return ret;
		if (nowait || filp->f_flags & O_NONBLOCK)
			return -EAGAIN;
		ret = wait_event_interruptible(file->readable, ummunotify_is_readable(file));
		if (ret)
			return ret;
	}
}

static __poll_t ummunotify_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct ummunotify_file *file = filp->private_data;

	poll_wait(filp, &file->readable, wait);
	/* A kernel thread may finish a poll that the owner began: aio does. */
	if (!ummunotify_is_owner(file) && !(current->flags & PF_KTHREAD))
		return EPOLLERR;
	return ummunotify_is_readable(file) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int ummunotify_fasync(int fd, struct file *filp, int on)
{
	struct ummunotify_file *file = filp->private_data;

	/* fd is -1 when the last close, by any process, cleans up. */
	if (fd != -1 && !ummunotify_is_owner(file))
		return -EPERM;
	return fasync_helper(fd, filp, on, &file->async);
}

/* ioctl */

static int ummunotify_compare_cookie(const void *key, const struct rb_node *node)
{
	u64 cookie = *(const u64 *)key;
	u64 other = rb_entry(node, struct ummunotify_region, by_cookie)->cookie;

	return cookie < other ? -1 : cookie > other;
}

static int ummunotify_compare_regions(struct rb_node *new, const struct rb_node *node)
{
	return ummunotify_compare_cookie(&rb_entry(new, struct ummunotify_region,
						   by_cookie)->cookie, node);
}

/* The tree that a cookie is in, if it is. */
static struct rb_root *ummunotify_cookies(struct ummunotify_file *file, u64 cookie)
{
	return &file->cookies[hash_64(cookie, UMMUNOTIFY_COOKIE_BITS)];
}

static long ummunotify_exchange_features(struct ummunotify_file *file, u32 __user *arg)
{
	if (READ_ONCE(file->used))
		return -EINVAL;
	/*
	 * The mask asked for is not even looked at: callers of old pass one
	 * that they never initialised.
	 */
	if (put_user(0, arg))
		return -EFAULT;
	ummunotify_mark_used(file);
	return 0;
}

/* Make a region visible to invalidations. Fills in what its pending registration has to know. */
static int ummunotify_add(struct ummunotify_file *file, struct ummunotify_region *region,
			  struct ummunotify_pending *pending)
{
	int ret = 0;

	spin_lock(&file->lock);
	if (rb_find_add(&region->by_cookie, ummunotify_cookies(file, region->cookie),
			ummunotify_compare_regions)) {
		ret = -EINVAL;
	} else {
		interval_tree_insert(&region->itree, ummunotify_tree(file, region));
		ummunotify_end_gap(file, region->itree.start, region->itree.last);
		file->nr_regions++;
		region->id = file->next_id++;
		pending->id = region->id;
		pending->serial = file->serial;
	}
	spin_unlock(&file->lock);
	return ret;
}

/* Returns the region with this cookie, which is nobody else's any more, or NULL. */
static struct ummunotify_region *ummunotify_remove(struct ummunotify_file *file, u64 cookie,
						   const u64 *id)
{
	struct ummunotify_region *region = NULL;
	struct rb_root *cookies;
	struct rb_node *node;

	lockdep_assert_held(&file->deliver);

	spin_lock(&file->lock);
	cookies = ummunotify_cookies(file, cookie);
	node = rb_find(&cookie, cookies, ummunotify_compare_cookie);
	if (node)
		region = rb_entry(node, struct ummunotify_region, by_cookie);
	if (region && id && region->id != *id)
		region = NULL;
	if (region) {
		rb_erase(&region->by_cookie, cookies);
		interval_tree_remove(&region->itree, ummunotify_tree(file, region));
		if (region->state != UMMUNOTIFY_VALID)
			list_del(&region->invalid);
		file->nr_regions--;
	}
	spin_unlock(&file->lock);
	return region;
}

static void ummunotify_free(struct ummunotify_file *file, struct ummunotify_region *region)
{
	kmem_cache_free(ummunotify_region_cache, region);
	ummunotify_uncharge(file->user, 1);
}

/*
 * Take back a registration that fails late. False if the range was unregistered
 * already, or if the process is killed before it can be: it stays watched then,
 * and nobody was told so.
 */
static bool ummunotify_take_back(struct ummunotify_file *file,
				 const struct ummunotify_pending *pending)
{
	struct ummunotify_region *region;

	if (mutex_lock_killable(&file->deliver))
		return false;
	region = ummunotify_remove(file, pending->cookie, &pending->id);
	mutex_unlock(&file->deliver);
	if (region)
		ummunotify_free(file, region);
	return region;
}

/*
 * Is there memory behind all of the bytes whose changes are announced? Where
 * nothing is mapped, nothing may be accessed, or a driver maps what has no
 * struct page, get_user_pages() finds nothing, and no invalidation has to come
 * when a device's own memory at these addresses changes.
 *
 * The range is visible to invalidations already. So if it is backed now, every
 * later change is recorded.
 */
static int ummunotify_check_backed(struct ummunotify_file *file,
				   const struct ummunotify_pending *pending)
{
	struct mm_struct *mm = file->mm;
	unsigned long address = pending->start;
	struct vm_area_struct *vma;
	bool backed;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	for (;;) {
		vma = find_vma(mm, address);
		backed = vma && vma->vm_start <= address && vma_is_accessible(vma) &&
			 !(vma->vm_flags & (VM_IO | VM_PFNMAP));
		if (!backed || pending->last < vma->vm_end)
			break;
		address = vma->vm_end;
		cond_resched();
	}
	mmap_read_unlock(mm);
	return backed ? 0 : -ENXIO;
}

/*
 * Watch the bytes from @start to before @end. An empty range is the one byte at
 * @start: clients of old pass the last byte as the end.
 */
static int ummunotify_register(struct ummunotify_file *file, u64 start, u64 end, u64 cookie,
			       u32 flags)
{
	struct ummunotify_pending pending = {
		.cookie = cookie,
		.protection = flags & UMMUNOTIFY_REGISTER_PROTECTION,
	};
	struct ummunotify_region *region;
	int ret;

	start = untagged_addr(start);
	end = untagged_addr(end);
	if (start > end || start >= file->mm->task_size || end > file->mm->task_size)
		return -EINVAL;
	pending.start = start;
	pending.last = start == end ? start : end - 1;

	ret = ummunotify_attach(file);
	if (ret)
		return ret;
	if (!ummunotify_charge(file->user, 1))
		return -ENOSPC;
	region = kmem_cache_alloc(ummunotify_region_cache, UMMUNOTIFY_GFP);
	if (!region) {
		ummunotify_uncharge(file->user, 1);
		return -ENOMEM;
	}
	region->itree.start = pending.start;
	region->itree.last = pending.last;
	region->cookie = cookie;
	region->state = UMMUNOTIFY_VALID;
	region->reported_early = false;
	region->protection = pending.protection;

	ret = ummunotify_add(file, region, &pending);
	if (ret) {
		ummunotify_free(file, region);
		return ret;
	}
	ret = ummunotify_wait_for_older(file, &pending);
	if (!ret && flags & UMMUNOTIFY_REGISTER_MUST_BE_BACKED)
		ret = ummunotify_check_backed(file, &pending);
	/* Unregistered by another thread, it was registered. */
	if (ret && !ummunotify_take_back(file, &pending) && ret == -ERESTARTSYS)
		ret = 0;
	return ret;
}

static long ummunotify_register_region(struct ummunotify_file *file,
				       struct ummunotify_register_ioctl __user *arg)
{
	struct ummunotify_register_ioctl parm;
	int ret;

	if (copy_from_user(&parm, arg, sizeof(parm)))
		return -EFAULT;
	/* Clients of old do not initialise flags. */
	ret = ummunotify_register(file, parm.start, parm.end, parm.user_cookie, 0);
	/* Nor do they look at the result: a signal must not leave the range unwatched. */
	return ret == -ERESTARTSYS ? -ERESTARTNOINTR : ret;
}

static long ummunotify_register_region2(struct ummunotify_file *file,
					struct ummunotify_register2 __user *arg)
{
	struct ummunotify_register2 parm;
	u32 size;
	int ret;

	if (get_user(size, &arg->size))
		return -EFAULT;
	if (size < UMMUNOTIFY_REGISTER2_SIZE_VER0)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_user(&parm, sizeof(parm), arg, size);
	if (ret)
		return ret;
	if (parm.flags & ~(UMMUNOTIFY_REGISTER_PROTECTION | UMMUNOTIFY_REGISTER_MUST_BE_BACKED))
		return -EINVAL;
	return ummunotify_register(file, parm.start, parm.end, parm.user_cookie, parm.flags);
}

static long ummunotify_unregister_region(struct ummunotify_file *file, u64 __user *arg)
{
	struct ummunotify_region *region;
	u64 cookie;

	if (copy_from_user(&cookie, arg, sizeof(cookie)))
		return -EFAULT;

	if (mutex_lock_killable(&file->deliver))
		return -EINTR;
	region = ummunotify_remove(file, cookie, NULL);
	mutex_unlock(&file->deliver);
	if (!region)
		return -EINVAL;
	ummunotify_free(file, region);
	return 0;
}

static long ummunotify_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct ummunotify_file *file = filp->private_data;
	void __user *argp = (void __user *)arg;

	if (!ummunotify_is_owner(file))
		return -EPERM;

	switch (cmd) {
	case UMMUNOTIFY_EXCHANGE_FEATURES:
		return ummunotify_exchange_features(file, argp);
	case UMMUNOTIFY_REGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_register_region(file, argp);
	case UMMUNOTIFY_UNREGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_unregister_region(file, argp);
	case UMMUNOTIFY_REGISTER_REGION2:
		ummunotify_mark_used(file);
		return ummunotify_register_region2(file, argp);
	default:
		return -ENOTTY;
	}
}

/* mmap, fdinfo, open, release */

static vm_fault_t ummunotify_fault(struct vm_fault *vmf)
{
	struct ummunotify_file *file = vmf->vma->vm_file->private_data;
	struct page *page = virt_to_page(file->shared);

	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct ummunotify_vm_ops = {
	.fault	= ummunotify_fault,
};

static int ummunotify_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct ummunotify_file *file = filp->private_data;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (vma->vm_pgoff || vma_pages(vma) != 1)
		return -EINVAL;
	/* Where reading implies it, nobody has asked to execute. */
	if (vma->vm_flags & VM_WRITE ||
	    (vma->vm_flags & VM_EXEC && !(current->personality & READ_IMPLIES_EXEC)))
		return -EACCES;
	ummunotify_mark_used(file);

	/* Neither mprotect() nor mremap() may make more of it; it is of no use in a core dump. */
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_EXEC | VM_MAYEXEC);
	vma->vm_ops = &ummunotify_vm_ops;
	return 0;
}

#ifdef CONFIG_PROC_FS
static void ummunotify_show_fdinfo(struct seq_file *seq, struct file *filp)
{
	struct ummunotify_file *file = filp->private_data;
	unsigned int ranges, in_flight;
	bool readable;
	u64 counter;

	spin_lock(&file->lock);
	ranges = file->nr_regions;
	counter = file->counter;
	readable = !list_empty(&file->invalid) || file->last_owed;
	in_flight = hweight_long(file->in_flight_slots) + file->untracked;
	spin_unlock(&file->lock);

	seq_printf(seq, "ummunotify-ranges:\t%u\n", ranges);
	seq_printf(seq, "ummunotify-counter:\t%llu\n", counter);
	seq_printf(seq, "ummunotify-readable:\t%d\n", readable);
	seq_printf(seq, "ummunotify-in-flight:\t%u\n", in_flight);
	seq_printf(seq, "ummunotify-user-ranges:\t%ld\n", atomic_long_read(&file->user->charged));
}
#endif

static int ummunotify_open(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file;
	int ret = -ENOMEM;
	int kind;

	if (filp->f_mode & FMODE_WRITE)
		return -EINVAL;
	/* A kernel thread has no memory to watch. */
	if (!current->mm)
		return -EINVAL;

	file = kzalloc_obj(*file, UMMUNOTIFY_GFP);
	if (!file)
		return -ENOMEM;
	file->user = ummunotify_get_user();
	if (!file->user)
		goto free_file;
	if (!ummunotify_charge(file->user, UMMUNOTIFY_FILE_WEIGHT)) {
		ret = -EMFILE;
		goto put_user;
	}
	file->shared = (u64 *)get_zeroed_page(UMMUNOTIFY_GFP);
	if (!file->shared)
		goto uncharge;

	file->mn.ops = &ummunotify_mn_ops;
	spin_lock_init(&file->lock);
	file->gap_start = 1;
	init_waitqueue_head(&file->ended);
	for (kind = 0; kind <= 1; kind++) {
		file->watched[kind] = RB_ROOT_CACHED;
		file->saturated[kind] = RB_ROOT_CACHED;
	}
	INIT_LIST_HEAD(&file->invalid);
	init_waitqueue_head(&file->readable);
	mutex_init(&file->deliver);
	mutex_init(&file->attach);
	file->mm = current->mm;
	mmgrab(file->mm);

	filp->private_data = file;
	/* read() honours IOCB_NOWAIT. */
	filp->f_mode |= FMODE_NOWAIT;
	return stream_open(inode, filp);

uncharge:
	ummunotify_uncharge(file->user, UMMUNOTIFY_FILE_WEIGHT);
put_user:
	ummunotify_put_user(file->user);
free_file:
	kfree(file);
	return ret;
}

static int ummunotify_release(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file = filp->private_data;
	struct ummunotify_region *region, *next;
	int i;

	if (file->attached) {
		/* Callbacks find no range from here on: only the file goes. */
		spin_lock(&file->lock);
		for (i = 0; i <= 1; i++) {
			file->watched[i] = RB_ROOT_CACHED;
			file->saturated[i] = RB_ROOT_CACHED;
		}
		spin_unlock(&file->lock);
		/* Waits for the callbacks that are running; there is none after it. */
		mmu_notifier_unregister(&file->mn, file->mm);
	}
	mmdrop(file->mm);

	for (i = 0; i < ARRAY_SIZE(file->cookies); i++) {
		rbtree_postorder_for_each_entry_safe(region, next, &file->cookies[i], by_cookie) {
			ummunotify_free(file, region);
			cond_resched();
		}
	}
	free_page((unsigned long)file->shared);
	ummunotify_uncharge(file->user, UMMUNOTIFY_FILE_WEIGHT);
	ummunotify_put_user(file->user);
	kfree(file);
	return 0;
}

static const struct file_operations ummunotify_fops = {
	.owner		= THIS_MODULE,
	.open		= ummunotify_open,
	.release	= ummunotify_release,
	.read_iter	= ummunotify_read_iter,
	.poll		= ummunotify_poll,
	.fasync		= ummunotify_fasync,
	.unlocked_ioctl	= ummunotify_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.mmap		= ummunotify_mmap,
#ifdef CONFIG_PROC_FS
	.show_fdinfo	= ummunotify_show_fdinfo,
#endif
};

static struct miscdevice ummunotify_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "ummunotify",
	.fops	= &ummunotify_fops,
	/* A process can only watch itself, with memory that is charged to it and bounded. */
	.mode	= 0444,
};

static int __init ummunotify_init(void)
{
	int ret;

	/* Of memory as much as epoll lets a user have. */
	if (!max_user_regions)
		max_user_regions = totalram_pages() / 25 *
				   (PAGE_SIZE / sizeof(struct ummunotify_region));

	ummunotify_region_cache = KMEM_CACHE(ummunotify_region, SLAB_ACCOUNT);
	if (!ummunotify_region_cache)
		return -ENOMEM;

	ret = misc_register(&ummunotify_misc);
	if (ret)
		kmem_cache_destroy(ummunotify_region_cache);
	return ret;
}

static void __exit ummunotify_exit(void)
{
	misc_deregister(&ummunotify_misc);
	kmem_cache_destroy(ummunotify_region_cache);
}

module_init(ummunotify_init);
module_exit(ummunotify_exit);

MODULE_AUTHOR("The regcache authors");
MODULE_DESCRIPTION("Tells user space when the mapping of its memory changes");
MODULE_VERSION(UMMUNOTIFY_VERSION);
MODULE_LICENSE("GPL");
